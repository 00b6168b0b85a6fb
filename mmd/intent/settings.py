"""Settings of KDSL: predicates, rule search, selection, classifier and gate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmd.base import Settings


class PredicateSettings(Settings):
    """Which atomic predicates are mined (METHODS section 1: the state's building blocks)."""

    max_per_label: int = Field(default=150, ge=1, description="Predicates a search works with, by prior.")
    max_negated: int = Field(default=15, ge=0, description="Negated predicates among them at most.")
    min_support: int = Field(default=2, ge=1, description="Training examples a predicate must hold on.")
    max_word_chars: int = Field(default=6, ge=1, description="Longest keyword, characters (Chinese) or words.")
    kinds: tuple[Literal["text", "ocr", "image", "item", "near"], ...] = Field(
        default=("text", "ocr", "image", "item", "near"), description="Kinds of predicates that are mined."
    )
    near_scopes: tuple[Literal["last_user", "image"], ...] = Field(
        default=("last_user", "image"), description="What `near` prototypes are made of."
    )
    near_points: tuple[Literal["exemplar", "centre", "contrast", "name"], ...] = Field(
        default=("exemplar", "centre", "contrast", "name"),
        description="Prototypes: single examples, label centres, discriminant directions, label names.",
    )
    level_step: float = Field(
        default=0.5, gt=0, description="Grid of near thresholds: standard deviations above the average cosine."
    )
    name_affinity: float = Field(
        default=1.0, ge=0, description="Prior added to keywords that share characters with the label's name."
    )


class SearchSettings(Settings):
    """Monte Carlo Tree Search with PUCT and progressive widening."""

    rollouts: int = Field(default=400, ge=1, description="Rollouts a search.")
    c_puct: float = Field(default=1.0, ge=0, description="Exploration constant; 0 is greedy.")
    max_length: int = Field(default=4, ge=1, description="Predicates of one rule at most.")
    widening: float = Field(default=2.0, gt=0, description="k of progressive widening: k * visits^alpha children.")
    widening_alpha: float = Field(default=0.5, ge=0, le=1, description="Exponent of progressive widening.")
    length_penalty: float = Field(default=0.02, ge=0, description="Reward lost a predicate.")
    lookahead: float = Field(
        default=3.0, ge=0, description="Weight of a child's own reward in its prior: P x exp(lookahead x reward)."
    )
    patience: int = Field(default=150, ge=1, description="Rollouts without a better rule after which a search stops.")
    rules_per_search: int = Field(default=60, ge=1, description="Rules a search hands on, chosen to cover the label.")
    seeds: int = Field(
        default=2, ge=1, le=100, description="Partitions into folds; a label is searched folds x seeds times."
    )


class BlockWeights(Settings):
    """Length of each feature block of the probe; 0 leaves a block out."""

    last_user: float = Field(default=1.0, ge=0, description="Character n-grams of the last user turn.")
    user: float = Field(default=0.5, ge=0, description="Character n-grams of all user turns.")
    agent: float = Field(default=0.0, ge=0, description="Character n-grams of all agent turns.")
    reply: float = Field(default=0.5, ge=0, description="Character n-grams of the agent's reply to the last user turn.")
    ocr: float = Field(default=1.0, ge=0, description="Character n-grams of the text in pictures.")
    sentence: float = Field(default=1.0, ge=0, description="Sentence vector of the last user turn.")
    reply_sentence: float = Field(default=0.5, ge=0, description="Sentence vector of the agent's reply.")
    shown_sentence: float = Field(
        default=0.7, ge=0, description="Sentence vector of the printed text of pictures sent without a word."
    )
    image: float = Field(default=0.7, ge=0, description="Picture vectors, pooled by their mean.")


class ProbeSettings(Settings):
    """The ``probe`` classifier: frozen features and a regularised linear head. Defaults: cross-validation."""

    c: float = Field(default=20.0, gt=0, description="Inverse regularisation of the linear head.")
    ngram_min: int = Field(default=1, ge=1, description="Shortest character n-gram.")
    ngram_max: int = Field(default=4, ge=1, description="Longest character n-gram.")
    min_df: int = Field(default=2, ge=1, description="Training examples an n-gram must occur in.")
    max_terms: int = Field(default=200_000, ge=1, description="N-grams a block keeps, the most frequent ones.")
    label_name_weight: float = Field(
        default=1.0, ge=0, description="Weight of each label's name as a training example; 0: unused."
    )
    weights: BlockWeights = Field(default_factory=BlockWeights)


class PictureSettings(Settings):
    """How far augmentation changes a picture; each change is drawn evenly up to its bound."""

    crop_vertical: float = Field(default=0.2, ge=0, le=0.4, description="Height cut off at the top, and at the bottom.")
    crop_side: float = Field(default=0.08, ge=0, le=0.4, description="Width cut off at the left, and at the right.")
    scale_min: float = Field(default=0.85, gt=0, le=1, description="Smallest scale; printed text stays readable.")
    scale_max: float = Field(default=1.1, ge=1, le=2, description="Largest scale.")
    hue_degrees: float = Field(default=25.0, ge=0, le=180, description="Turn of the colour circle, either way.")
    saturation: float = Field(default=0.2, ge=0, lt=1, description="Change of saturation, as a share.")
    contrast: float = Field(default=0.2, ge=0, lt=1, description="Change of contrast, as a share.")
    brightness: float = Field(default=0.12, ge=0, lt=1, description="Change of brightness, as a share of the scale.")
    jpeg_quality_min: int = Field(default=60, ge=1, le=95, description="Lowest JPEG quality.")
    jpeg_quality_max: int = Field(default=92, ge=1, le=95, description="Highest JPEG quality.")


class AugmentSettings(Settings):
    """Rule-guided augmentation of the few-shot set (KDSL: the larger model is fine-tuned on augmented data)."""

    copies: int = Field(default=3, ge=0, description="Augmented samples made of one example; 0: originals only.")
    methods: tuple[Literal["frame", "edit", "picture", "paraphrase"], ...] = Field(
        default=("frame", "edit", "picture"),
        description="frame: role-aware paraphrase templates; edit: token edits that spare the rules' tokens; picture: "
        "transforms that keep printed text readable; paraphrase: by a language model.",
    )
    paraphraser: str | None = Field(
        default=None, description="Language model of `paraphrase` (a name of mmd.models.resolve)."
    )
    filter_precision: float = Field(
        default=0.9, ge=0, le=1, description="Precision from which a rule that contradicts a sample's label drops it."
    )
    filter_support: int = Field(default=5, ge=1, description="Firings such a rule needs.")
    picture: PictureSettings = Field(default_factory=PictureSettings)


class PromptSettings(Settings):
    """What a multimodal model is shown of a dialogue."""

    max_turns: int = Field(default=8, ge=1, description="Turns shown, the last ones.")
    max_dialogue_chars: int = Field(default=600, ge=16, description="Characters of the turns shown, the last ones.")
    max_ocr_chars: int = Field(default=200, ge=0, description="Characters of a picture's printed text.")
    ocr: Literal["auto", "always", "never"] = Field(
        default="auto", description="Put printed text into the prompt; auto: only for models that see no pictures."
    )
    max_images: int = Field(default=2, ge=0, description="Pictures shown, the last ones.")
    image_side_px: int = Field(default=448, ge=28, description="Longest side of a picture given to the model.")
    list_labels: bool = Field(default=False, description="List the task's labels in the prompt.")
    hints: int = Field(default=3, ge=0, description="Fired rules told in the prompt at most (arm `prompt`).")


class LoraSettings(Settings):
    """Low-rank adaptation (Hu et al. 2021), by PEFT."""

    rank: int = Field(default=16, ge=1, description="Rank of the update.")
    alpha: float = Field(default=32.0, gt=0, description="Scale of the update: alpha / rank.")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout before the update.")
    targets: tuple[str, ...] = Field(
        default=(), description="Names of the layers that are adapted; empty: found in the architecture."
    )


class DeepSpeedSettings(Settings):
    """How DeepSpeed shards the training state over workers."""

    stage: Literal[0, 2, 3] = Field(default=0, description="ZeRO stage: 0 none, 2 gradients and optimizer, 3 weights.")
    offload_optimizer: bool = Field(default=False, description="Keep optimizer states in CPU memory (stages 2 and 3).")
    offload_weights: bool = Field(default=False, description="Keep weights in CPU memory (stage 3).")


class SpanWeights(Settings):
    """Length of each span's hidden states in a row of the frozen model's head; 0 leaves a span out."""

    last_user: float = Field(default=1.0, ge=0, description="The last user turn; it has read what came before it.")
    reply: float = Field(default=0.7, ge=0, description="The agent's reply to the last user turn.")
    printed: float = Field(default=0.0, ge=0, description="Printed text of pictures, beside words.")
    shown: float = Field(default=1.0, ge=0, description="Printed text of pictures sent without a word.")
    hint: float = Field(default=0.7, ge=0, description="Fired rules in words (arm `prompt`).")


class FrozenSettings(Settings):
    """A linear head on hidden states of the model as it is. Defaults: cross-validation on few-shot dialogues."""

    layer: float = Field(default=0.67, gt=0, le=1, description="Share of the model's layers that are run.")
    ridge: float = Field(default=0.1, gt=0, description="Regularisation of the head.")
    name_weight: float = Field(
        default=1.0, ge=0, description="Weight of each label's name as a training example; 0: unused."
    )
    context_turns: int = Field(default=4, ge=0, description="Turns before the last user turn that are read.")
    context_tokens: int = Field(default=40, ge=1, description="Tokens of each of them.")
    message_tokens: int = Field(default=80, ge=1, description="Tokens of the last user turn, and of the reply.")
    printed_tokens: int = Field(default=60, ge=0, description="Tokens of printed text beside words.")
    shown_tokens: int = Field(default=112, ge=1, description="Tokens of printed text sent without a word.")
    hint_tokens: int = Field(default=96, ge=1, description="Tokens of fired rules in words.")
    weights: SpanWeights = Field(default_factory=SpanWeights)


class FinetuneSettings(Settings):
    """Fine-tuning of the multimodal model with Ray Train, DeepSpeed and PEFT."""

    method: Literal["auto", "lora", "full", "frozen"] = Field(
        default="auto",
        description="lora adapts low-rank; full trains every weight; frozen fits a head a task on the model as it is, "
        "one pass an original, every fold held out (tasks, epochs, held_out_folds, refit and workers have no say); "
        "auto: full for tiny-*, else lora.",
    )
    tasks: Literal["separate", "joint"] = Field(
        default="separate", description="One model a task, or one for all: joint training suffers the seesaw (KDSL)."
    )
    epochs: float | None = Field(
        default=None,
        gt=0,
        description="Passes over the training samples, copies included; null: 4, and 1,100 steps for tiny-*.",
    )
    learning_rate: float | None = Field(
        default=None, gt=0, description="Peak learning rate; null: 2e-4 for lora, 1e-3 for full on tiny-*, else 2e-5."
    )
    warmup: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Share of steps in which the rate rises, then cosine; null: 0.05, and 0.15 for tiny-*.",
    )
    weight_decay: float | None = Field(
        default=None, ge=0, description="Decoupled weight decay of matrices; null: 0.01, and 0.05 for tiny-*."
    )
    clip: float = Field(default=1.0, gt=0, description="Largest gradient norm.")
    batch: int | None = Field(
        default=None, ge=1, description="Samples of one worker's micro-batch; null: 32 for tiny-*, else 8."
    )
    accumulate: int = Field(default=1, ge=1, description="Micro-batches whose gradients are summed for one step.")
    recompute: bool = Field(
        default=False, description="Recompute activations in the backward pass (gradient checkpointing): less memory."
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of a training worker; null: its share of the cores less one, which loads.",
    )
    hint_share: float = Field(
        default=0.3, ge=0, le=1, description="Share of training samples whose prompt tells the held-out fired rules."
    )
    held_out_folds: int = Field(
        default=1, ge=0, description="Folds predicted by a model trained without them, for the gate; folds at most."
    )
    refit: bool = Field(
        default=False, description="Train once more on all folds; false serves the model trained without fold 0."
    )
    validate_every: float | None = Field(
        default=None,
        gt=0,
        description="Epochs between validations (weighted F1); null: a tenth of the run, at least 1.",
    )
    checkpoint_every: int = Field(default=50, ge=1, description="Optimizer steps between checkpoints.")
    workers: int = Field(default=1, ge=1, description="Training workers; on GPUs one each.")
    max_failures: int = Field(default=2, ge=0, description="Times a killed run is restarted from its last checkpoint.")
    mlflow_uri: str | None = Field(default=None, description="MLflow tracking URI for the metrics; null: none.")
    lora: LoraSettings = Field(default_factory=LoraSettings)
    deepspeed: DeepSpeedSettings = Field(default_factory=DeepSpeedSettings)
    frozen: FrozenSettings = Field(default_factory=FrozenSettings)


class GateSettings(Settings):
    """How rules and classifiers are joined; everything is chosen on held-out predictions of the training part."""

    arm: Literal["auto", "override", "verdict", "vote", "prompt", "rules_only", "mllm_only"] = Field(
        default="vote",
        description="override: the best rule answers if strong enough; verdict: what the rules say together does; "
        "vote: rules shift the classifier; prompt: fired rules are told to the MLLM; rules_only, mllm_only: one alone; "
        "auto: validation decides.",
    )
    vote_weights: tuple[float, ...] = Field(
        default=(3.0,), min_length=1, description="Weights of the rules' share of evidence that vote tries."
    )
    mllm_shares: tuple[float, ...] = Field(
        default=(0.0, 0.25, 0.5, 0.75, 1.0),
        min_length=1,
        description="Shares of the MLLM in the log-linear pool with the probe that are tried: 0 probe, 1 MLLM alone.",
    )
    caution: float = Field(
        default=1.5,
        ge=0,
        description="Standard errors of lead that a smaller τ needs over a larger one, a share over one with less log "
        "loss, and (auto) an arm that hears rules over the classifiers alone.",
    )
    rule_coverage: float = Field(
        default=0.45, gt=0, le=1, description="Share of held-out examples that rules alone shall cover when reported."
    )


class IntentSettings(Settings):
    """KDSL as a whole."""

    folds: int = Field(default=5, ge=2, le=50, description="Validation folds of the training split.")
    min_precision: float = Field(
        default=0.05, ge=0, le=1, description="Out-of-fold precision a kept rule needs; weak rules still vote."
    )
    min_support: int = Field(default=2, ge=1, description="Held-out examples a kept rule must fire on.")
    min_found: float = Field(
        default=0.2, ge=0, le=1, description="Share of a label's searches that must find a rule for it to be kept."
    )
    max_overlap: float = Field(
        default=0.7,
        gt=0,
        description="Jaccard similarity of two rules' held-out firings from which the weaker one goes; above 1 none.",
    )
    predicates: PredicateSettings = Field(default_factory=PredicateSettings)
    search: SearchSettings = Field(default_factory=SearchSettings)
    probe: ProbeSettings = Field(default_factory=ProbeSettings)
    augment: AugmentSettings = Field(default_factory=AugmentSettings)
    prompt: PromptSettings = Field(default_factory=PromptSettings)
    finetune: FinetuneSettings = Field(default_factory=FinetuneSettings)
    gate: GateSettings = Field(default_factory=GateSettings)
