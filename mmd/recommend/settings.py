"""Settings of ConKD: graph, samples, the two teachers, distillation and generation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmd.base import Settings

Gate = Literal["hard", "soft", "static", "none"]
Teachers = Literal["both", "dialogue", "recommendation"]
Start = Literal["scratch", "teacher"]


class GraphSettings(Settings):
    """Which edges of the knowledge graph are kept, and how names in text find their entities."""

    min_relation_edges: int = Field(
        default=1_000, ge=0, description="A relation is kept when it has more edges than this."
    )
    min_relation_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="A relation is kept, too, when it has more than this share of all edges: what counts in graphs of "
        "under 100,000 edges.",
    )
    items: Literal["auto", "stated", "titles"] = Field(
        default="auto",
        description="stated: what the corpus states for a turn is mentioned, nothing else; titles: items whose titles "
        "stand in the text, too; auto: titles where the corpus states none.",
    )
    link_text: bool = Field(default=True, description="Whether names of entities in the turns' text are linked, too.")
    min_name_chars: int = Field(
        default=4, ge=1, description="Shorter names in text are not linked; a Chinese character counts as two."
    )
    max_name_entities: int = Field(
        default=3, ge=1, description="A name that more entities share is linked to none of them, else to all."
    )


class ConversationSettings(Settings):
    """What the models see of a dialogue before the turn that they answer."""

    context_turns: int = Field(default=5, ge=1, description="Last turns of the context whose words are read.")
    context_tokens: int = Field(default=256, ge=8, description="Right-most tokens of the context.")
    response_tokens: int = Field(default=30, ge=4, description="Tokens of a response, its beginning kept.")
    max_entities: int = Field(default=64, ge=1, description="Last entities of the context.")
    min_word_count: int = Field(default=3, ge=1, description="Rarer words of the training split are unknown words.")
    max_words: int = Field(default=20_000, ge=100, description="Words of the vocabulary, the most frequent ones.")
    mode_tokens: bool = Field(default=True, description="Whether a response begins with [REC] or [GEN].")
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=0.5, description="Share of the training split's dialogues on which choices are made."
    )


class StepSettings(Settings):
    """An optimisation."""

    epochs: float = Field(default=8.0, gt=0, description="Passes over the training samples.")
    min_steps: int = Field(default=300, ge=0, description="Steps at least; a small corpus is passed more often then.")
    batch: int = Field(default=64, ge=1, description="Samples a step, over all workers.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Peak rate.")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of steps over which the rate rises.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay.")
    clip: float = Field(default=1.0, gt=0, description="Largest norm of a step's gradient.")
    validate_every: float = Field(default=1.0, gt=0, description="Epochs between validations.")
    patience: int = Field(
        default=3, ge=0, description="Validations without a better one before training stops; 0: never."
    )


class RecommenderSettings(Settings):
    """The recommendation teacher ψ: R-GCN and attention over the context's entities."""

    dim: int = Field(default=128, ge=2, description="Numbers of an entity's vector.")
    bases: int = Field(default=8, ge=1, description="Basis matrices that the relations share.")
    relations: Literal["typed", "blind", "none"] = Field(
        default="typed", description="typed: R-GCN; blind: one matrix for all edges; none: no edges of the graph."
    )
    words: bool = Field(default=True, description="Whether the words of the context are read beside its entities.")
    max_words: int = Field(default=64, ge=1, description="Right-most known words of the context that are read.")
    dropout: float = Field(default=0.5, ge=0, lt=1, description="Dropout of the vectors.")
    label_smoothing: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the target that is spread over all items in training."
    )
    neighbours: int = Field(
        default=0, ge=0, description="Neighbours drawn a node in training; 0: all, the graph as a whole."
    )
    targets: Literal["all", "novel"] = Field(
        default="all", description="all: every mention is a training sample; novel: first mentions alone."
    )
    steps: StepSettings = Field(
        default_factory=lambda: StepSettings(batch=512, learning_rate=5e-3, epochs=5, min_steps=150)
    )


class BackboneSettings(Settings):
    """The network of the dialogue teacher φ and of the student θ."""

    kind: Literal["kgsf", "lm"] = Field(default="kgsf", description="kgsf: from scratch; lm: a causal language model.")
    model: str = Field(default="tiny-llama", description="The causal language model of lm (a name of `mmd models`).")
    dim: int = Field(default=160, ge=8, description="Width of kgsf.")
    layers: int = Field(default=2, ge=1, description="Layers of kgsf's encoder and decoder each.")
    heads: int = Field(default=2, ge=1, description="Heads of kgsf's attentions.")
    hidden: int = Field(default=480, ge=8, description="Width of kgsf's feed-forward parts.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Dropout of kgsf.")
    graph: Literal["rgcn", "embedding", "none"] = Field(
        default="rgcn", description="Where vectors of entities come from: R-GCN, a table without edges, or none."
    )
    bases: int = Field(default=8, ge=1, description="Basis matrices that the relations of rgcn share.")
    lora_rank: int = Field(default=0, ge=0, description="Rank of lm's adapters; 0: all weights are trained.")


class DistillSettings(Settings):
    """What the student learns from."""

    start: Start = Field(
        default="teacher", description="scratch: the student's weights are random; teacher: the dialogue teacher's."
    )
    gate: Gate = Field(default="soft", description="How the teachers are mixed: hard, soft, static, or none (no KD).")
    teachers: Teachers = Field(default="both", description="Which teachers speak; with one of them there is no gate.")
    eta: float = Field(default=0.3, description="Hard gate: item mass from which on the recommendation teacher speaks.")
    static: float = Field(default=0.5, ge=0, le=1, description="Static gate: share of the recommendation teacher.")
    gamma: float = Field(default=0.9, ge=0, le=1, description="Share of the teachers in the loss.")
    temperature: float = Field(default=1.0, gt=0, description="Temperature of the teachers' distributions.")
    one_hot: bool = Field(default=False, description="Whether teachers say only their likeliest token.")
    top_tokens: int = Field(default=64, ge=1, description="Tokens a position that the cache keeps of φ.")
    top_items: int = Field(default=512, ge=1, description="Items a response that the cache keeps of ψ.")


class SweepSettings(Settings):
    """Which settings of distillation ``sweep_gates --method conkd`` tries, and by what it chooses."""

    gates: tuple[Literal["hard", "soft"], ...] = Field(
        default=("hard", "soft"), min_length=1, description="Gates that are tried."
    )
    etas: tuple[float, ...] = Field(
        default=(0.1, 0.2, 0.3, 0.5, 0.7), min_length=1, description="Values of distill.eta, for the hard gate."
    )
    gammas: tuple[float, ...] = Field(
        default=(0.3, 0.6, 0.9), min_length=1, description="Values of distill.gamma, in [0, 1]."
    )
    temperatures: tuple[float, ...] = Field(
        default=(1.0, 2.0), min_length=1, description="Values of distill.temperature; each asks the teachers anew."
    )
    cutoff: Literal[1, 10, 50] = Field(
        default=10,
        description="k of the F1@k on held-out responses that is chosen by; 10 is less left to chance than 1.",
    )
    perplexity_margin: float = Field(
        default=0.01,
        ge=0,
        description="A perplexity that is larger by up to this share is no worse: the chosen student's than its "
        "dialogue teacher's, and in conkd_table a student's than that without distillation.",
    )
    keep: int = Field(default=3, ge=2, description="At each rung one in so many trials goes on (successive halving).")
    rung: int = Field(default=1, ge=1, description="Validations before the first rung.")


class GenerationSettings(Settings):
    """How a reply is decoded."""

    method: Literal["greedy", "beam", "sample"] = Field(default="greedy", description="Decoding.")
    beams: int = Field(default=4, ge=1, description="Width of the beam.")
    top_p: float = Field(default=0.9, gt=0, le=1, description="Nucleus that samples are drawn from.")
    temperature: float = Field(default=1.0, gt=0, description="Temperature of the sampling.")
    no_repeat: int = Field(
        default=0,
        ge=0,
        description="No sequence of so many words and items comes twice in a reply: little trained students do not go "
        "round in circles. 0: any may.",
    )
    batch: int = Field(default=64, ge=1, description="Replies decoded together.")


class TrainSettings(Settings):
    """How training is spread; changes how, not what."""

    workers: int = Field(default=1, ge=1, description="Training processes.")
    checkpoint_every: int = Field(default=500, ge=1, description="Steps between checkpoints.")
    max_failures: int = Field(default=2, ge=0, description="Worker failures that a run survives.")
    threads: int = Field(default=0, ge=0, description="CPU threads of a worker; 0: the cores shared out.")
    deepspeed_stage: Literal[0, 1, 2, 3] = Field(
        default=0, description="ZeRO stage of the dialogue teacher and the student with several workers."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Arithmetic of φ and θ; auto: bfloat16 where the device multiplies it fast."
    )


class RecommendSettings(Settings):
    """ConKD (arXiv 2310.18119)."""

    enabled: bool = Field(default=True, description="Whether the pipeline trains teachers and a student.")
    graph: GraphSettings = Field(default_factory=GraphSettings)
    conversations: ConversationSettings = Field(default_factory=ConversationSettings)
    recommender: RecommenderSettings = Field(default_factory=RecommenderSettings)
    backbone: BackboneSettings = Field(default_factory=BackboneSettings)
    dialogue: StepSettings = Field(default_factory=StepSettings, description="Training of the dialogue teacher.")
    student: StepSettings = Field(
        default_factory=lambda: StepSettings(epochs=4, min_steps=150),  # it starts where the dialogue teacher ended
        description="Training of the student.",
    )
    distill: DistillSettings = Field(default_factory=DistillSettings)
    sweep: SweepSettings = Field(default_factory=SweepSettings)
    generation: GenerationSettings = Field(default_factory=GenerationSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
