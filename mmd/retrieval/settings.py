"""Settings of DR, SDR and MDR: samples, towers, training, index, re-ranking and pools."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmd.base import Settings

Method = Literal["dr", "sdr", "sdr-separate", "mdr"]
IndexKind = Literal["auto", "flat", "hnsw", "ivf_flat", "ivf_pq", "sq8"]


class SampleSettings(Settings):
    """Which turns are responses to be found, and what is seen of the dialogue before them."""

    modalities: tuple[str, ...] = Field(
        default=("text", "image", "product"),
        min_length=1,
        description="Modalities of responses, in order of the table.",
    )
    image_from: tuple[Literal["user", "agent"], ...] = Field(
        default=("agent",), min_length=1, description="Whose pictures are responses to be found."
    )
    unstated: bool = Field(
        default=False,
        description="Whether, in a corpus that says which turns are answers (the shop), others are responses, too.",
    )
    context_turns: int = Field(default=8, ge=1, description="Last turns of the dialogue that a query keeps.")
    picture_text: Literal["description", "ocr", "both", "none"] = Field(
        default="both", description="Words that stand for a picture beside its pixels."
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=0.5, description="Share of the training split's dialogues on which choices are made."
    )


class TowerSettings(Settings):
    """Encoders."""

    text: str = Field(
        default="features",
        description="Text encoder: features (vectors of featurize, frozen, under a trained head) or a model's name.",
    )
    vision: str = Field(
        default="features",
        description="Picture encoder: features (vectors of featurize, under a trained head), a transformers vision "
        "model's name, or none.",
    )
    pooling: Literal["mean", "cls"] = Field(default="mean", description="How a text model's states become one vector.")
    dim: int = Field(default=256, ge=2, description="Numbers of the space that contexts and responses share.")
    hidden: int = Field(default=512, ge=2, description="Width of the heads over frozen features.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Dropout in the heads.")
    context_tokens: int = Field(default=128, ge=8, description="Tokens of a context, its end kept.")
    response_tokens: int = Field(default=64, ge=8, description="Tokens of a response, its beginning kept.")
    train_text: Literal["full", "lora", "frozen"] = Field(
        default="full", description="What of a text model is trained."
    )
    train_vision: Literal["full", "frozen"] = Field(default="frozen", description="What of a vision model is trained.")
    lora_rank: int = Field(default=16, ge=1, description="Rank of LoRA's matrices.")


class TrainingSettings(Settings):
    """The optimisation."""

    epochs: float = Field(default=8.0, gt=0, description="Passes over the training samples.")
    batch: int = Field(
        default=128, ge=2, description="Samples a step whose responses are each other's negatives, over all workers."
    )
    micro_batch: int = Field(
        default=0, ge=0, description="Samples encoded at a time (GradCache); 0: a worker's whole share."
    )
    workers: int = Field(default=1, ge=1, description="Training processes.")
    learning_rate: float | None = Field(
        default=None, gt=0, description="Peak rate; null: 1e-3 for heads, 5e-5 for text models."
    )
    warmup: float = Field(default=0.1, ge=0, lt=1, description="Share of steps over which the rate rises.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay.")
    clip: float = Field(default=1.0, gt=0, description="Largest norm of a step's gradient.")
    temperature: float = Field(default=0.05, gt=0, description="Temperature of the softmax over cosines at the start.")
    learn_temperature: bool = Field(default=False, description="Whether the temperature is trained.")
    text_fraction: float | None = Field(
        default=None, ge=0, le=1, description="Share of a batch's samples whose response is text; null: as they come."
    )
    hard_negatives: int = Field(
        default=0, ge=0, description="Negatives a sample that are mined from the current index."
    )
    validate_every: float = Field(default=1.0, gt=0, description="Epochs between validations.")
    patience: int = Field(
        default=3, ge=0, description="Validations without a better one before training stops; 0: never."
    )
    checkpoint_every: int = Field(default=200, ge=1, description="Steps between checkpoints.")
    max_failures: int = Field(default=2, ge=0, description="Worker failures that a run survives.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Arithmetic of the encoders; auto: bfloat16 where the device multiplies it fast."
    )
    threads: int = Field(default=0, ge=0, description="CPU threads of a worker; 0: the cores shared out.")


class IndexSettings(Settings):
    """The search structure."""

    kind: IndexKind = Field(default="auto", description="Structure; auto chooses by size and memory and says why.")
    memory_mb: int = Field(
        default=2048, ge=1, description="Memory that an index of one modality, or each part of it, may take."
    )
    recall: float = Field(default=0.95, gt=0, le=1, description="Recall@10 against exact search that auto tunes for.")
    threads: int = Field(default=0, ge=0, description="Threads; 0: all cores.")
    shards: int = Field(default=1, ge=1, description="Parts that separate actors search.")


class RerankSettings(Settings):
    """The second look at the first few."""

    enabled: bool = Field(default=False, description="Whether a cross-encoder ranks the first responses again.")
    depth: int = Field(default=20, ge=2, description="Responses that it looks at.")
    epochs: float = Field(default=2.0, gt=0, description="Passes over the training samples.")
    learning_rate: float = Field(default=5e-4, gt=0, description="Peak rate.")
    samples: int = Field(default=2_000, ge=1, description="Training samples that it learns from, at most.")


class PoolSettings(Settings):
    """Candidates of the evaluation."""

    size: int = Field(default=50, ge=2, description="Responses a modality in a pool, the right one among them.")
    seed: int = Field(default=0, ge=0, description="Seed of the distractors.")
    encoder: str = Field(
        default="auto",
        description="Text encoder that is compared as it comes off the shelf: a model's name, features (that of "
        "featurize), none; auto: the one that the retriever's texts start from.",
    )
    examples: int = Field(default=12, ge=0, description="Retrievals that the report shows, over all modalities.")


class TextFractionSettings(Settings):
    """What ``experiment text_fraction`` tries."""

    fractions: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.1, 0.25, 0.5, 0.75, 0.9),
        min_length=1,
        description="Values of training.text_fraction, beside samples as they come.",
    )
    seeds: int = Field(default=3, ge=1, le=100, description="Trainings of each, with a seed of its own.")


class RetrievalSettings(Settings):
    """DR, SDR and MDR (arXiv 2506.11499)."""

    enabled: bool = Field(default=True, description="Whether the pipeline trains a retriever.")
    method: Method = Field(default="mdr", description="dr, sdr, sdr-separate or mdr.")
    samples: SampleSettings = Field(default_factory=SampleSettings)
    towers: TowerSettings = Field(default_factory=TowerSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    index: IndexSettings = Field(default_factory=IndexSettings)
    rerank: RerankSettings = Field(default_factory=RerankSettings)
    pools: PoolSettings = Field(default_factory=PoolSettings)
    sweep: TextFractionSettings = Field(default_factory=TextFractionSettings)
