"""DR, SDR and MDR (arXiv 2506.11499): which encoders there are, and who shares them.

============  ====================================  ==================  =======================
method        context encoders                      response encoders   intent
============  ====================================  ==================  =======================
dr            one for intent and one a modality     one a modality      head on its own encoder
sdr           one                                   one a modality      head on the shared one
sdr-separate  one, and one for intent               one a modality      head on its own encoder
mdr           one                                   one for all         none
============  ====================================  ==================  =======================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mmd.base import Settings
from mmd.errors import ConfigError, ModelError
from mmd.features.extract import ExtractorInfo
from mmd.retrieval.bases import BaseModels, BaseRef
from mmd.retrieval.inputs import QUERY_PARTS, InputMaker, TowerInputs
from mmd.retrieval.settings import Method, RetrievalSettings, SampleSettings, TowerSettings
from mmd.retrieval.towers import TextEncoder, Tower, TransformerText, TransformerVision, VectorText, VectorVision

METHODS: tuple[Method, ...] = ("dr", "sdr", "sdr-separate", "mdr")
INTENT = "intent"
SHARED = "shared"
INTEGRATED = "integrated"
_MIN_TEMPERATURE = 0.01  # of CLIP (Radford et al. 2021): scores are then cosines times 100
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_RESERVED = frozenset({INTENT, SHARED, INTEGRATED, *dir(nn.ModuleDict)})  # encoders' own names, and what torch refuses
FORMAT_VERSION: Literal[1] = 1


class RetrieverSpec(Settings):
    """Everything that a retriever's shape and inputs follow from; ``retriever.json`` of the artefact."""

    format_version: Literal[1] = FORMAT_VERSION
    method: Method
    modalities: tuple[str, ...] = Field(min_length=1, description="In the order of kinds and of intent logits.")
    towers: TowerSettings
    samples: SampleSettings = Field(description="What a query shows of its dialogue.")
    text_dim: int = Field(ge=0, description="Length of a text's vector; 0: a text model is trained.")
    picture_dim: int = Field(ge=0, description="Length of a picture's vector; 0: a vision model is trained, or none.")
    text_model: BaseRef | None = Field(default=None, description="The text model, trained or as it is.")
    vision_model: BaseRef | None = Field(default=None, description="The vision model, trained or as it is.")
    extractors: dict[str, ExtractorInfo | None] = Field(
        default_factory=dict, description="Role (text, vision) → extractor of the features that towers read."
    )
    temperature: float = Field(gt=0, description="Of the softmax over cosines, at the start.")
    learn_temperature: bool = False


def spec_of(
    settings: RetrievalSettings, maker: InputMaker, bases: BaseModels | None = None, method: Method | None = None
) -> RetrieverSpec:
    """Return the spec of a retriever that is to be trained on a maker's inputs.

    Args:
        settings: towers, samples, temperature.
        maker: of the inputs; its modalities are the retriever's.
        bases: models that the towers name; None: there are none.
        method: instead of the settings' one.
    """
    training = settings.training
    return RetrieverSpec(
        method=method or settings.method,
        modalities=maker.modalities,
        towers=settings.towers,
        samples=settings.samples,
        text_dim=0 if maker.tokenizer is not None else maker.sources.text_dim,
        picture_dim=0 if maker.processor is not None or settings.towers.vision == "none" else maker.sources.picture_dim,
        text_model=bases.text if bases else None,
        vision_model=bases.vision if bases else None,
        extractors=dict(maker.sources.extractors),
        temperature=training.temperature,
        learn_temperature=training.learn_temperature,
    )


class Retriever(nn.Module):
    """Context and response encoders of one method.

    Args:
        spec: method, modalities, towers.
        bases: models that trained towers start from; None where towers read vectors.
        seed: of the initial weights; torch's own generator is left as it was.

    Raises:
        ConfigError: no such method.
        ModelError: a tower needs a model that ``bases`` lacks.
    """

    def __init__(self, spec: RetrieverSpec, bases: BaseModels | None = None, seed: int = 0) -> None:
        super().__init__()
        if spec.method not in METHODS:
            raise ConfigError(f"retrieval.method={spec.method!r}: no such method; take one of {', '.join(METHODS)}.")
        for name in spec.modalities:
            if not _NAME.fullmatch(name) or name in _RESERVED:
                raise ConfigError(f"modality {name!r}: give it another name, of lower-case letters, digits, - and _.")
        self.spec = spec
        self._bases = bases
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.contexts = nn.ModuleDict({name: self._tower(1, QUERY_PARTS) for name in self._context_names()})
            self.responses = nn.ModuleDict(
                {name: self._tower(len(spec.modalities), 1) for name in self._response_names()}
            )
            self.intent_head = None if spec.method == "mdr" else nn.Linear(spec.towers.dim, len(spec.modalities))
        self.log_temperature = nn.Parameter(torch.tensor(spec.temperature).log(), requires_grad=spec.learn_temperature)
        self._bases = None

    def _context_names(self) -> tuple[str, ...]:
        names: dict[Method, tuple[str, ...]] = {
            "dr": (INTENT, *self.spec.modalities),
            "sdr": (SHARED,),
            "sdr-separate": (SHARED, INTENT),
            "mdr": (SHARED,),
        }
        return names[self.spec.method]

    def _response_names(self) -> tuple[str, ...]:
        return (INTEGRATED,) if self.spec.method == "mdr" else self.spec.modalities

    def _tower(self, n_kinds: int, parts: int) -> Tower:
        settings = self.spec.towers
        text: TextEncoder
        if self.spec.text_dim:
            text = VectorText(parts, self.spec.text_dim, settings)
        else:
            text = TransformerText(self._base().text_module(settings), settings.pooling)
        if settings.vision == "none":
            return Tower(text, None, n_kinds, settings.dim)
        if self.spec.picture_dim:
            return Tower(text, VectorVision(self.spec.picture_dim, settings), n_kinds, settings.dim)
        return Tower(text, TransformerVision(self._base().vision_module()), n_kinds, settings.dim)

    def _base(self) -> BaseModels:
        if self._bases is None:
            raise ModelError(
                f"retrieval.towers: text={self.spec.towers.text}, vision={self.spec.towers.vision} need base models; "
                "load them with mmd.retrieval.bases.load_bases."
            )
        return self._bases

    # ------------------------------------------------------------ encoding

    @property
    def two_step(self) -> bool:
        """Whether the modality is predicted before responses are ranked."""
        return self.intent_head is not None

    def context_tower(self, subtask: str) -> Tower:
        """Return the context encoder of a subtask: a modality, or ``intent``.

        Raises:
            ModelError: no such subtask.
        """
        if subtask != INTENT:
            self._known(subtask)
        elif not self.two_step:
            raise ModelError("mdr: predicts no modality; it ranks responses of all of them at once.")
        name = subtask if subtask in self.contexts else SHARED
        return cast("Tower", self.contexts[name])

    def response_tower(self, modality: str) -> Tower:
        """Return the response encoder of a modality.

        Raises:
            ModelError: no such modality.
        """
        self._known(modality)
        return cast("Tower", self.responses[modality if modality in self.responses else INTEGRATED])

    def _known(self, modality: str) -> None:
        if modality not in self.spec.modalities:
            raise ModelError(
                f"modality {modality!r}: this retriever knows {', '.join(self.spec.modalities)}; ask for one of these."
            )

    def embed_queries(self, inputs: TowerInputs, subtask: str) -> Tensor:
        """Return float32 (n, dim), unit length: queries in the space of a modality's responses."""
        return cast("Tensor", self.context_tower(subtask)(inputs))

    def embed_responses(self, inputs: TowerInputs, modality: str) -> Tensor:
        """Return float32 (n, dim), unit length."""
        return cast("Tensor", self.response_tower(modality)(inputs))

    def intent_logits(self, inputs: TowerInputs) -> Tensor:
        """Return float32 (n, n_modalities): which modality the answer has.

        Raises:
            ModelError: the method predicts none (mdr).
        """
        return self._intent(self.context_tower(INTENT).states(inputs))

    def _intent(self, states: Tensor) -> Tensor:
        if self.intent_head is None:
            raise ModelError("mdr: predicts no modality; it ranks responses of all of them at once.")
        return cast("Tensor", self.intent_head(functional.layer_norm(states, states.shape[1:])))

    def encode_queries(self, inputs: TowerInputs, kinds: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a training batch's queries, each for its own modality, and the intent logits; each encoder runs once.

        Args:
            inputs: n queries.
            kinds: int64 (n,), index of the modality of each query's right response.

        Returns:
            float32 (n, dim) of unit length, and (n, n_modalities), or None for mdr.
        """
        if self.spec.method == "dr":
            vectors = self._by_kind(inputs, kinds, self.context_tower)
            return vectors, self.intent_logits(inputs)
        states = self.context_tower(self.spec.modalities[0]).states(inputs)
        vectors = functional.normalize(states, dim=1)
        if self.spec.method == "mdr":
            return vectors, None
        return vectors, self._intent(states) if self.spec.method == "sdr" else self.intent_logits(inputs)

    def encode_responses(self, inputs: TowerInputs) -> Tensor:
        """Return float32 (n, dim), unit length, of responses of any modality (``inputs.kind`` tells which)."""
        if self.spec.method == "mdr":
            return self.embed_responses(inputs, self.spec.modalities[0])
        return self._by_kind(inputs, inputs.kind, self.response_tower)

    def _by_kind(self, inputs: TowerInputs, kinds: Tensor, tower: Callable[[str], Tower]) -> Tensor:
        """Encode each modality's rows by its own tower, and put them back in order."""
        out: Tensor | None = None
        for number, modality in enumerate(self.spec.modalities):
            rows = (kinds == number).nonzero()[:, 0]
            if not len(rows):
                continue
            part = tower(modality)(inputs.rows(rows))
            out = part.new_zeros((len(inputs), part.shape[1])) if out is None else out
            out = out.index_copy(0, rows, part)
        return torch.zeros((0, self.spec.towers.dim), device=kinds.device) if out is None else out

    # ------------------------------------------------------------ what it is made of

    def temperature(self) -> Tensor:
        """Return the temperature of the softmax over cosines, a scalar; one that is learnt stays above 0.01."""
        temperature = self.log_temperature.exp()
        return temperature.clamp(min=_MIN_TEMPERATURE) if self.spec.learn_temperature else temperature

    def use_dtype(self, dtype: torch.dtype) -> None:
        """Run text and vision models in an arithmetic (weights stay float32; heads compute in float32)."""
        for module in self.modules():
            if isinstance(module, TransformerText | TransformerVision):
                module.dtype = dtype

    def parameter_counts(self) -> dict[str, int]:
        """Return part → number of its weights, and ``total``; a tensor that parts share is counted once in total."""
        parts: dict[str, nn.Module] = {f"context.{name}": tower for name, tower in self.contexts.items()}
        parts |= {f"response.{name}": tower for name, tower in self.responses.items()}
        if self.intent_head is not None:
            parts["intent_head"] = self.intent_head
        counts = {name: _unique(part.parameters()) for name, part in parts.items()}
        return counts | {"total": _unique(p for part in parts.values() for p in part.parameters())}


def _unique(parameters: Iterable[nn.Parameter]) -> int:
    """Count the weights of distinct tensors."""
    found = {id(parameter): parameter.numel() for parameter in parameters}
    return sum(found.values())
