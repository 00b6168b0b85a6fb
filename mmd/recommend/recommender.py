"""The recommendation teacher ψ: which items a context calls for.

Entities of the context get states from the item graph (:mod:`mmd.recommend.rgcn`); attention pools them, as in KBRD
(Chen et al. 2019, arXiv 1908.05391): ``user = softmax(tanh(hA) b) · h``, zero without entities. An attention that this
vector steers pools the words of the context, which join it. An item's score is the product of user and item state
plus a bias, and for items mentioned before a term of its own: whether the answer names an item again depends on who
named it, how long ago, and on what is said.

Items' vectors know the words of their titles. That, the words, strong dropout and the smoothed labels are what few
conversations can teach beyond co-mentions (docs/results/recommender-research.md). The co-mentions themselves
(:mod:`mmd.recommend.comentions`) join the trained network with a weight that is fitted on held-out mentions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor, nn

from mmd.base import Settings
from mmd.errors import ArtifactError, ConfigError
from mmd.recommend.comentions import CoMentions, membership
from mmd.recommend.contexts import ContextMaker, context_words, count_marks, title_words
from mmd.recommend.popularity import Mentions
from mmd.recommend.recommender_parts import START_STD, AttentionPool, NodeStates, RepeatTerm, WordReader
from mmd.recommend.rgcn import Block, EntityStates, FixedSparse, GraphTensors, Relations
from mmd.recommend.settings import ConversationSettings, RecommenderSettings
from mmd.recommend.types import Context, MentionSample

if TYPE_CHECKING:
    from mmd.artifacts import Artifact, ArtifactWriter
    from mmd.recommend.contexts import ContextBatch
    from mmd.recommend.graph import ItemGraph

FORMAT_VERSION = 2
FOLDER = "recommender"
"""Where an artefact of kind ``teacher`` holds ψ."""
SPEC_FILE = "recommender.json"
WEIGHTS_FILE = "weights.safetensors"
UNCALIBRATED = (1.0, 0.0, 0.0)


class RecommenderSpec(Settings):
    """What a recommender is, without its weights."""

    format_version: int = Field(default=FORMAT_VERSION, description="Of the files.")
    dim: int = Field(ge=2, description="Numbers of a vector.")
    bases: int = Field(ge=1, description="Basis matrices of the graph convolution.")
    relations: Relations = Field(description="How the graph's edges are read.")
    dropout: float = Field(ge=0, lt=1, description="Dropout of the vectors.")
    words: tuple[str, ...] = Field(description="Known words of contexts; empty: words are not read.")
    max_words: int = Field(ge=0, description="Right-most known words that are read.")
    context_turns: int = Field(ge=1, description="Last turns whose words are read and whose mentions are told apart.")
    max_entities: int = Field(ge=1, description="Last entities that are read.")
    graph: str = Field(description="Fingerprint of the item graph.")
    co_mentions: int = Field(default=0, ge=0, description="Pairs of items that training dialogues mention together.")

    def maker(self) -> ContextMaker:
        """Return what makes the recommender's batches."""
        return ContextMaker(self.words, self.context_turns, self.max_words, self.max_entities)


class Recommender(nn.Module):
    """The network.

    Args:
        spec: its shape.
        graph: the item graph, the one of the spec.
    """

    item_entities: Tensor
    calibration: Tensor

    def __init__(self, spec: RecommenderSpec, graph: ItemGraph) -> None:
        super().__init__()
        dim = spec.dim
        self.spec = spec
        self.n_entities, self.n_items = graph.n_entities, graph.n_items
        self.tensors = GraphTensors.from_graph(graph, spec.relations)
        self.register_buffer("item_entities", torch.from_numpy(graph.item_entities).long(), persistent=False)
        self.entities = EntityStates(self.tensors, dim, spec.bases, START_STD)
        self._titles, n_title_words = _title_matrix(graph)
        self.title_vectors = nn.Parameter(torch.randn(n_title_words, dim) * (START_STD / 2))
        self.marks = nn.Embedding(count_marks(spec.context_turns), dim)
        nn.init.normal_(self.marks.weight, std=0.02)
        self.pool = AttentionPool(dim)
        self.words = WordReader(len(spec.words), dim, spec.dropout) if spec.words else None
        self.repeats = RepeatTerm(dim, count_marks(spec.context_turns))
        self.item_bias = nn.Parameter(torch.zeros(self.n_items))
        self.dropout = nn.Dropout(spec.dropout)
        self.co_mentions = CoMentions(self.n_items, spec.co_mentions)
        # Not trained with the rest: a factor of the scores, what repeats get in addition, and what co-mentions weigh
        # (RecommenderTask).
        self.register_buffer("calibration", torch.tensor(UNCALIBRATED))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.item_bias.device

    def start_from(self, samples: Sequence[MentionSample]) -> None:
        """Start as what training mentions say without learning: popularity, what is repeated, what goes together."""
        items = torch.tensor([sample.item for sample in samples])
        counts = torch.bincount(items, minlength=self.n_items) + 0.5
        log_shares = (counts / counts.sum()).log()
        with torch.no_grad():
            self.item_bias.copy_(log_shares)
        self.repeats.start_from(self.spec.maker()([sample.context for sample in samples]), items, log_shares)
        self.co_mentions = CoMentions.of(Mentions.of_samples(samples, self.n_items)).to(self.device)
        self.spec = self.spec.model_copy(update={"co_mentions": self.co_mentions.n_pairs})

    def block(
        self, entities: Iterable[int] | None = None, neighbours: int = 0, rng: np.random.Generator | None = None
    ) -> Block:
        """Return the part of the graph that the states of all items and of some entities depend on.

        Args:
            entities: beside the items'; None: all.
            neighbours: drawn at most for a node; 0: all.
            rng: draws them.
        """
        if entities is None:
            return self.tensors.block(None, neighbours, rng)
        nodes = np.union1d(self.item_entities.cpu().numpy(), np.fromiter(entities, np.int64))
        return self.tensors.block(nodes.tolist(), neighbours, rng)

    def node_states(self, block: Block | None = None) -> NodeStates:
        """Return the states of a block's rows; None: of all entities."""
        block = (block or self.block()).to(self.device)
        extra = self._titles.to(self.device) @ self.title_vectors if len(self.title_vectors) else None
        place = torch.zeros(self.n_entities, dtype=torch.int64, device=self.device)
        place[block.rows] = torch.arange(len(block.rows), device=self.device)
        return NodeStates(self.entities(block, extra), place)

    def forward(self, batch: ContextBatch, nodes: NodeStates | None = None, own: Tensor | None = None) -> Tensor:
        """Return the items' logits, float32 (B, n_items); in training mode without co-mentions.

        Args:
            batch: contexts, on the network's device.
            nodes: states of at least the items and the batch's entities; None: they are computed here.
            own: bool (B, n_items), see :class:`~mmd.recommend.comentions.CoMentions`.
        """
        terms = self.terms(batch, nodes or self.node_states())
        counted = not self.training and float(self.calibration[2]) != 0
        together = self.co_mentions(batch.items, batch.item_mask, own) if counted else None
        return self.combine(*terms, batch, together)

    def terms(self, batch: ContextBatch, nodes: NodeStates) -> tuple[Tensor, Tensor]:
        """Return what a context says of every item, (B, n_items), and of those mentioned before in addition, (B, k)."""
        user = self.user(batch, nodes)
        return user @ nodes.of(self.item_entities).T + self.item_bias, self.repeats(user, batch)

    def combine(self, scores: Tensor, repeats: Tensor, batch: ContextBatch, together: Tensor | None = None) -> Tensor:
        """Return the logits (B, n_items) that :meth:`terms` and co-mentions (B, n_items) make, with the calibration."""
        sharpness, offset, weight = self.calibration.unbind()
        logits = sharpness * scores
        if together is not None:
            logits = logits + weight * together
        return logits.scatter_add(1, batch.items, repeats + offset * batch.item_mask)

    def user(self, batch: ContextBatch, nodes: NodeStates) -> Tensor:
        """Return the user vectors (B, dim); zero where a context has neither entities nor known words."""
        mentioned = self.dropout(nodes.of(batch.entities) + self.marks(batch.entity_marks))
        user = self.pool(mentioned, batch.entity_mask)
        if self.words is not None:
            user = self.words(user, batch.words, batch.word_mask)
        return cast("Tensor", self.dropout(user))


def _title_matrix(graph: ItemGraph) -> tuple[FixedSparse, int]:
    """Return entities × title words with entries 1/√(words of the title), and the number of these words."""
    titles = title_words(graph)
    known = {word: place for place, word in enumerate(sorted({word for title in titles for word in title}))}
    cells = [
        (graph.item_entities[item], known[word], len(title) ** -0.5)
        for item, title in enumerate(titles)
        for word in title
    ]
    rows, columns, weights = np.array(cells, np.float64).reshape(-1, 3).T
    shape = (graph.n_entities, len(known))
    return FixedSparse.of(rows.astype(np.int64), columns.astype(np.int64), weights.astype(np.float32), shape), len(
        known
    )


def build_recommender(
    graph: ItemGraph,
    samples: Sequence[MentionSample],
    settings: RecommenderSettings,
    conversations: ConversationSettings,
    seed: int,
) -> Recommender:
    """Return an untrained recommender whose words and biases come from training samples.

    Args:
        graph: the item graph.
        samples: to learn from.
        settings: shape of the network.
        conversations: how much of a dialogue is read, and which words are known.
        seed: of the weights.

    Raises:
        ConfigError: there is no sample.
    """
    if not samples:
        raise ConfigError(
            "no item is mentioned in a training dialogue after its first turn, so there is nothing to recommend from; "
            "`mmd build_graph` prints the counts."
        )
    words = context_words(samples, conversations.min_word_count, conversations.max_words) if settings.words else ()
    spec = RecommenderSpec(
        dim=settings.dim,
        bases=settings.bases,
        relations=settings.relations,
        dropout=settings.dropout,
        words=words,
        max_words=settings.max_words,
        context_turns=conversations.context_turns,
        max_entities=conversations.max_entities,
        graph=graph.fingerprint(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        recommender = Recommender(spec, graph)
    recommender.start_from(samples)
    return recommender


def mentions_to_learn(samples: Sequence[MentionSample], settings: RecommenderSettings) -> list[MentionSample]:
    """Return the samples that ``targets`` asks for: all, or the novel ones alone."""
    return [sample for sample in samples if sample.novel or settings.targets == "all"]


@torch.inference_mode()
def item_log_probs(
    model: Recommender,
    maker: ContextMaker,
    contexts: Sequence[Context],
    temperature: float = 1.0,
    nodes: NodeStates | None = None,
    batch: int = 512,
    own: Sequence[Sequence[int]] | None = None,
) -> NDArray[np.float32]:
    """Return log P_ψ of all items given each context, float32 (n, n_items); each row's exponentials sum to 1.

    Args:
        model: in evaluation mode.
        maker: of its spec.
        contexts: to recommend for.
        temperature: the logits are divided by.
        nodes: states of all entities; None: they are computed here.
        batch: contexts at a time.
        own: items of the training dialogue that each context is of, none where it is of none: what the model counted
            there is left out.
    """
    nodes = nodes or model.node_states()
    out = np.empty((len(contexts), model.n_items), np.float32)
    for start in range(0, len(contexts), batch):
        placed = maker(contexts[start : start + batch]).to(model.device)
        known = membership(own[start : start + batch], model.n_items).to(model.device) if own else None
        logits = model(placed, nodes, known)
        out[start : start + batch] = torch.log_softmax(logits / temperature, dim=1).cpu().numpy()
    return out


@dataclass(frozen=True)
class LoadedRecommender:
    """A trained recommender, ready to be asked; states of all entities are computed once.

    Attributes:
        model: in evaluation mode.
        maker: of its batches.
    """

    model: Recommender
    maker: ContextMaker
    _nodes: list[NodeStates] = field(default_factory=list, init=False, repr=False, compare=False)

    def item_log_probs(
        self, contexts: Sequence[Context], temperature: float = 1.0, own: Sequence[Sequence[int]] | None = None
    ) -> NDArray[np.float32]:
        """Return log P_ψ of all items given each context; see :func:`item_log_probs`."""
        if not self._nodes:
            with torch.inference_mode():
                self._nodes.append(self.model.node_states())
        return item_log_probs(self.model, self.maker, contexts, temperature, self._nodes[0], own=own)


def save_recommender(writer: ArtifactWriter, model: Recommender, folder: str = FOLDER) -> None:
    """Write a recommender into a folder of an artefact; the graph it stands on is not copied."""
    from safetensors.torch import save

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    writer.write_bytes(f"{folder}/{WEIGHTS_FILE}", save(weights))
    writer.write_json(f"{folder}/{SPEC_FILE}", model.spec.model_dump(mode="json"))


def load_recommender(artifact: Artifact, graph: ItemGraph, folder: str = FOLDER) -> LoadedRecommender:
    """Load a recommender for use: on the CPU, dropout off.

    Args:
        artifact: that :func:`save_recommender` wrote into.
        graph: that it was trained over.
        folder: inside the artefact.

    Raises:
        ArtifactError: it holds no recommender, one of another format, or one of another graph.
    """
    from safetensors.torch import load

    way_out = "open teacher/NAME, made by `mmd train_teachers`, with the graph it names as input, or train again."
    if not artifact.has(f"{folder}/{SPEC_FILE}"):
        raise ArtifactError(f"{artifact.ref}: holds no recommendation teacher; {way_out}")
    try:
        spec = RecommenderSpec.model_validate(artifact.read_json(f"{folder}/{SPEC_FILE}"))
    except ValidationError as err:
        raise ArtifactError(f"{artifact.ref}: {folder}/{SPEC_FILE} is malformed ({err.errors()[0]['msg']}).") from err
    if spec.format_version != FORMAT_VERSION:
        raise ArtifactError(
            f"{artifact.ref}: {folder} is of format {spec.format_version}; this mmd reads {FORMAT_VERSION}."
        )
    if spec.graph != graph.fingerprint():
        raise ArtifactError(
            f"{artifact.ref}: its recommendation teacher was trained over another item graph; {way_out}"
        )
    model = Recommender(spec, graph)
    try:
        model.load_state_dict(load(artifact.read_bytes(f"{folder}/{WEIGHTS_FILE}")))
    except RuntimeError as err:
        raise ArtifactError(f"{artifact.ref}: weights do not fit {SPEC_FILE} ({err}); train again.") from err
    return LoadedRecommender(model.eval(), spec.maker())
