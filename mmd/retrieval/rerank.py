"""A second look at the first few: a small cross-encoder that sees a query and a response side by side.

Towers meet in one cosine alone; whether interaction across modalities helps is the paper's open question (arXiv
2506.11499). The cross-encoder reads both towers' vectors, their product and difference, and the raw inputs of both
sides (words of the query beside pixels of the response, and the reverse); with a text model also its pooled states of
"context, response" read as one text. Its score is the cosine over the temperature plus a correction that starts at
zero: untrained, it keeps the retriever's order. It learns from the retriever's own first responses (listwise softmax).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mmd.artifacts import Artifact, ArtifactWriter
from mmd.base import Settings
from mmd.errors import ArtifactError
from mmd.retrieval.encode import encode_queries, encode_responses
from mmd.retrieval.engine import there
from mmd.retrieval.inputs import InputMaker, TextBatch, TowerInputs
from mmd.retrieval.pools import no_distractors
from mmd.retrieval.settings import RerankSettings
from mmd.retrieval.types import Query, Response, Sample, SampleSet

if TYPE_CHECKING:
    from mmd.retrieval.methods import Retriever

SPEC_FILE, WEIGHTS_FILE = "rerank/rerank.json", "rerank/weights.safetensors"
_HIDDEN = 256
_PAIR_TOKENS = 192
_LISTS_A_STEP = 32


class RerankSpec(Settings):
    """What the network's shape follows from."""

    width: int
    depth: int


class RerankNet(nn.Module):
    """Features of pairs → corrections of their scores.

    Args:
        width: of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, _HIDDEN)
        self.second = nn.Linear(_HIDDEN, 1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, features: Tensor, cosines: Tensor) -> Tensor:
        """Return scores of (…, width) features and (…) cosines over the temperature."""
        correction: Tensor = self.second(functional.gelu(self.first(self.norm(features)))).squeeze(-1)
        return cosines + correction


@dataclass(frozen=True)
class PairReader:
    """Makes the features of pairs.

    Attributes:
        retriever: whose towers are read; nothing of it is trained.
        maker: of its inputs.
    """

    retriever: Retriever
    maker: InputMaker

    def read(self, query: Query, responses: Sequence[Response]) -> tuple[Tensor, Tensor]:
        """Return features (n, width) of a query with each response, and their cosines over the temperature (n,)."""
        with torch.inference_mode():
            asked = there(self.retriever, self.maker.queries([query]))
            found = there(self.retriever, self.maker.responses(responses))
            left = torch.cat([self.retriever.embed_queries(asked, r.modality) for r in self._kinds(responses)])
            place = {r.modality: row for row, r in enumerate(self._kinds(responses))}
            left = left[[place[r.modality] for r in responses]]
            right = self.retriever.encode_responses(found)
            raw = [part.expand(len(responses), -1) for part in _raw(asked)] + _raw(found)
            parts = [left, right, left * right, (left - right).abs(), *raw, *self._joint(query, responses)]
            cosines = (left * right).sum(1) / self.retriever.temperature()
        # Copies: what inference mode made cannot take part in training.
        return torch.cat([part.float() for part in parts], dim=1).clone(), cosines.float().clone()

    @staticmethod
    def _kinds(responses: Sequence[Response]) -> list[Response]:
        """Return one response of each modality."""
        return list({r.modality: r for r in responses}.values())

    def _joint(self, query: Query, responses: Sequence[Response]) -> list[Tensor]:
        """Return pooled states (n, d) of context and response read as one text; none where texts are vectors."""
        if self.maker.tokenizer is None:
            return []
        from mmd.retrieval.facts import context_text

        context = "\n".join(context_text(query, self.maker.titles, self.maker.pictures))
        texts = [f"{context}\n{response.text}" for response in responses]
        batch: Any = TextBatch(tokens=self.maker.tokenizer(texts, _PAIR_TOKENS, "left"))
        tower = self.retriever.context_tower(self.retriever.spec.modalities[0])
        return [tower.text(there(self.retriever, batch))]


def _raw(inputs: TowerInputs) -> list[Tensor]:
    """Return the vectors that towers read, (n, d) each; tokens and pixels are no vectors."""
    found = [] if inputs.text.vectors is None else [inputs.text.vectors]
    if inputs.pictures is not None and inputs.pictures.dim() == 2:
        found.append(inputs.pictures)
    return found


class Reranker:
    """Scores a query's first responses again (:class:`mmd.retrieval.engine.SecondLook`).

    Args:
        net: the trained network.
        reader: makes its features.
        depth: responses that it looks at.
    """

    def __init__(self, net: RerankNet, reader: PairReader, depth: int) -> None:
        self.net, self.reader, self.depth = net.eval(), reader, depth

    def scores(self, query: Query, responses: Sequence[Response]) -> NDArray[np.float32]:
        """Return float32 (n,), larger is better."""
        if not responses:
            return np.zeros(0, np.float32)
        features, cosines = self.reader.read(query, responses)
        with torch.inference_mode():
            found: NDArray[np.float32] = self.net(features, cosines).cpu().numpy()
        return found


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Lists:
    """First responses of samples: features (n, depth, width), cosines (n, depth), gold position (n,), real ones."""

    features: Tensor
    cosines: Tensor
    golds: Tensor
    real: Tensor

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.golds)


def first_responses(
    reader: PairReader,
    samples: Sequence[Sample],
    given: SampleSet,
    depth: int,
    *,
    with_gold: bool,
    whole: bool = False,
) -> list[list[Response]]:
    """Return what the retriever finds first for each sample: in the union (mdr), or in the right modality.

    Args:
        reader: has the retriever.
        samples: to ask about.
        given: their corpus.
        depth: responses a sample.
        with_gold: put the right one in the last place where it is not among them.
        whole: search all responses; else these samples' right ones and what no sample names, so that nothing of other
            parts of the corpus is learnt from.
    """
    named = {s.response_id for s in given.samples}
    mine = {s.response_id for s in samples}
    ids = [key for key in sorted(given.responses) if whole or key in mine or key not in named]
    responses = [given.responses[key] for key in ids]
    place = {key: row for row, key in enumerate(ids)}
    right = encode_responses(reader.retriever, reader.maker, responses)
    modality = np.array([r.modality for r in responses])
    two_step, found = reader.retriever.two_step, []
    asked: Mapping[str, Any] = {
        m: encode_queries(reader.retriever, reader.maker, [s.query for s in samples], m)
        for m in dict.fromkeys(s.modality for s in samples)
    }
    for row, (sample, banned) in enumerate(zip(samples, no_distractors(samples, given), strict=True)):
        scores = right @ asked[sample.modality][row]
        out = [place[key] for key in banned if key in place and key != sample.response_id]
        scores[out] = -np.inf
        if two_step:
            scores[modality != sample.modality] = -np.inf
        order = [i for i in np.argsort(-scores, kind="stable")[:depth].tolist() if np.isfinite(scores[i])]
        gold = place[sample.response_id]
        if with_gold and gold not in order:
            order[-1:] = [gold]
        found.append([responses[i] for i in order])
    return found


def make_lists(reader: PairReader, samples: Sequence[Sample], found: Sequence[Sequence[Response]], depth: int) -> Lists:
    """Read the features of each sample's first responses; short lists are padded, a missing gold is at -1."""
    features, cosines, golds, real = [], [], [], []
    for sample, responses in zip(samples, found, strict=True):
        read, near = reader.read(sample.query, responses)
        missing = depth - len(responses)
        features.append(functional.pad(read, (0, 0, 0, missing)))
        cosines.append(functional.pad(near, (0, missing), value=-torch.inf))
        ids = [response.id for response in responses]
        golds.append(ids.index(sample.response_id) if sample.response_id in ids else -1)
        real.append(len(responses))
    return Lists(torch.stack(features), torch.stack(cosines), torch.tensor(golds), torch.tensor(real))


def fit_reranker(
    retriever: Retriever,
    maker: InputMaker,
    train: Sequence[Sample],
    held_out: Sequence[Sample],
    given: SampleSet,
    settings: RerankSettings,
    seed: int,
) -> tuple[Reranker, dict[str, float]]:
    """Train a re-ranker on the retriever's first responses; the epoch that held-out samples prefer is kept.

    The order of the retriever itself is epoch 0: a re-ranker that never helps on held-out samples changes nothing.

    Args:
        retriever: trained, in evaluation mode; left as it is.
        maker: of its inputs.
        train: samples to learn from; at most ``settings.samples`` of them are drawn.
        held_out: samples that the epoch is chosen on.
        given: their corpus.
        settings: depth, epochs, rate.
        seed: of weights, drawing and order.

    Returns:
        The re-ranker, and R@1 among the first ``depth`` of held-out samples ``before`` and ``after``.
    """
    reader, depth = PairReader(retriever, maker), settings.depth
    drawn = np.random.default_rng(seed).permutation(len(train))[: settings.samples]
    some = [train[row] for row in sorted(drawn.tolist())]
    lists = make_lists(reader, some, first_responses(reader, some, given, depth, with_gold=True), depth)
    judged = None
    if held_out:
        found = first_responses(reader, held_out, given, depth, with_gold=False)
        judged = make_lists(reader, held_out, found, depth)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = RerankNet(lists.features.shape[-1]).to(lists.features.device)
        told = _train(net, lists, judged, settings)
    return Reranker(net, reader, depth), told


def _train(net: RerankNet, lists: Lists, judged: Lists | None, settings: RerankSettings) -> dict[str, float]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    before = best = recall_of(net, judged)
    kept = _copy(net)
    for _ in range(max(1, round(settings.epochs))):
        net.train()
        for rows in torch.split(torch.randperm(len(lists)), _LISTS_A_STEP):
            scores = net(lists.features[rows], lists.cosines[rows])
            loss = functional.cross_entropy(scores, lists.golds[rows].to(scores.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        now = recall_of(net, judged)
        if judged is None or now > best:
            best, kept = now, _copy(net)
    net.load_state_dict(kept)
    return {"before": before, "after": best, "lists": float(len(lists))}


def recall_of(net: RerankNet, lists: Lists | None) -> float:
    """Return how often the right response comes first; 0 without lists."""
    if lists is None or not len(lists):
        return 0.0
    net.eval()
    with torch.inference_mode():
        scores = net(lists.features, lists.cosines)
    return float((scores.argmax(1).cpu() == lists.golds).float().mean())


def _copy(net: RerankNet) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


@dataclass(frozen=True)
class Reranked:
    """R@1 among all responses, each a share in [0, 1].

    Attributes:
        depth: responses that the re-ranker looks at.
        before: by the retriever's order.
        after: by the re-ranker's.
        within: how often the right response is among the first ``depth`` at all, which no re-ranker can exceed.
    """

    depth: int
    before: float
    after: float
    within: float


def judge_reranker(reranker: Reranker, samples: Sequence[Sample], given: SampleSet) -> Reranked:
    """Return how often samples' right response comes first, before and after the second look.

    Two-step methods are asked in the right modality.
    """
    found = first_responses(reranker.reader, samples, given, reranker.depth, with_gold=False, whole=True)
    lists = make_lists(reranker.reader, samples, found, reranker.depth)
    return Reranked(
        depth=reranker.depth,
        before=float((lists.cosines.argmax(1).cpu() == lists.golds).float().mean()),
        after=recall_of(reranker.net, lists),
        within=float((lists.golds >= 0).float().mean()),
    )


# ---------------------------------------------------------------- on disk


def save_reranker(writer: ArtifactWriter, reranker: Reranker) -> None:
    """Write a re-ranker beside its retriever."""
    from safetensors.torch import save

    state = {name: value.cpu().contiguous() for name, value in reranker.net.state_dict().items()}
    writer.write_bytes(WEIGHTS_FILE, save(state))
    spec = RerankSpec(width=reranker.net.first.in_features, depth=reranker.depth)
    writer.write_json(SPEC_FILE, spec.model_dump())


def load_reranker(artifact: Artifact, retriever: Retriever, maker: InputMaker) -> Reranker | None:
    """Load the re-ranker that a retriever's artefact brings along, where the retriever is; None where it brings none.

    Raises:
        ArtifactError: its weights do not fit.
    """
    from safetensors.torch import load

    if not artifact.has(SPEC_FILE):
        return None
    spec = RerankSpec.model_validate(artifact.read_json(SPEC_FILE))
    net = RerankNet(spec.width)
    try:
        net.load_state_dict(load(artifact.read_bytes(WEIGHTS_FILE)))
    except RuntimeError as err:
        raise ArtifactError(f"{artifact.ref}: weights do not fit {SPEC_FILE} ({err}); train it again.") from err
    net.to(next(retriever.parameters()).device)
    return Reranker(net, PairReader(retriever, maker), spec.depth)
