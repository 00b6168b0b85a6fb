"""Time of an epoch of the recommendation teacher over a corpus's item graph, four ways.

* ``typed``: as the settings are, words of the context included;
* ``typed, no words``: the graph alone;
* ``blind, no words``: one matrix for all edges instead of one a relation;
* ``sparse autograd, no words``: R-GCN as it is often written: a sparse matrix a basis whose numbers hold the learned
  coefficients, so that the gradient runs through the sparse matrices. It computes the same states (checked here).

All train the same samples in one process on the same threads, in blocks that alternate; an epoch is extrapolated from
the median step. Processor time is recorded beside wall time, for machines that others use, too. Reads graph/NAME;
validation and test dialogues are not trained on.

    python -m jobs.bench rgcn --graph redial
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from jobs.glue.records import spread
from mmd.artifacts import ArtifactStore
from mmd.errors import ArtifactError
from mmd.models.threads import torch_threads
from mmd.recommend.conversations import Conversations
from mmd.recommend.samples import divide_samples, mention_samples
from mmd.recommend.settings import ConversationSettings, RecommenderSettings
from mmd.recommend.types import MentionSample

if TYPE_CHECKING:
    from torch import Tensor

    from mmd.recommend.graph import ItemGraph
    from mmd.recommend.recommender import Recommender
    from mmd.recommend.recommender_task import RecommenderTask
    from mmd.recommend.rgcn import Block, RelationalGraphConv

SLOW = "sparse autograd, no words"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "typed": {},
    "typed, no words": {"words": False},
    "blind, no words": {"words": False, "relations": "blind"},
    SLOW: {"words": False},
}
_TARGET_S = 30.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add sizes and repeats."""
    parser.add_argument("--store", default="artifacts", help="artefact store (default: %(default)s)")
    parser.add_argument("--graph", default="shop", help="name of the graph artefact (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=20_000, help="samples of an epoch (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=512, help="samples a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="steps of a block (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="blocks of each way (default: %(default)s)")
    parser.add_argument("--slow-steps", type=int, default=1, help="steps of a slow block (default: %(default)s)")
    parser.add_argument("--slow-repeats", type=int, default=2, help="slow blocks (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores (default: %(default)s)")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Time blocks of steps of all ways in turn."""
    import torch

    graph, samples = _ground(options)
    with torch_threads(options["threads"] or len(os.sched_getaffinity(0))):
        ways = {name: Way(graph, samples, name) for name in VARIANTS}
        difference = compare(ways["typed, no words"].model, ways[SLOW].model)
        for way in ways.values():
            way.steps(1, options["batch"])  # warm-up
        for repeat in range(options["repeats"]):
            for name, way in ways.items():
                if name != SLOW:
                    way.measure(options["steps"], options["batch"])
                elif repeat < options["slow_repeats"]:
                    way.measure(options["slow_steps"], options["batch"])
        threads = torch.get_num_threads()
    steps = math.ceil(options["samples"] / options["batch"])
    epoch = {name: statistics.median(way.wall_s) * steps for name, way in ways.items()}
    return {
        "config": {name: value for name, value in options.items() if name != "store"},
        "threads": threads,
        "warmup": 1,
        "repeats": options["repeats"],
        "graph": {"entities": graph.n_entities, "edges": len(graph.edges), "relations": graph.n_relations},
        "steps_an_epoch": steps,
        "step_s": {name: spread(way.wall_s) for name, way in ways.items()},
        "step_cpu_s": {name: spread(way.cpu_s) for name, way in ways.items()},
        "epoch_s": epoch,
        "epoch_cpu_s": {name: statistics.median(way.cpu_s) * steps for name, way in ways.items()},
        "times_blind": {name: seconds / epoch["blind, no words"] for name, seconds in epoch.items()},
        "largest_difference_of_states": difference,
        "target_s": _TARGET_S,
        "reached": epoch["typed"] <= _TARGET_S,
    }


def _ground(options: Mapping[str, Any]) -> tuple[ItemGraph, Sequence[MentionSample]]:
    """Return the graph and training mentions, validation dialogues left out.

    Raises:
        ArtifactError: the graph has no edges.
    """
    artifact = ArtifactStore(options["store"]).open(f"graph/{options['graph']}")
    conversations = Conversations(artifact)
    if not len(conversations.graph.edges):
        raise ArtifactError(f"{artifact.ref}: has no edges, so there is nothing to time; name a corpus with a graph.")
    settings = ConversationSettings()
    found = [sample for one in conversations.dialogues("train") for sample in mention_samples(one, settings)]
    return conversations.graph, divide_samples(found, settings.validation_fraction, 0).train


class Way:
    """One way to train, with its own network and optimizer.

    Args:
        graph: the item graph.
        samples: to learn from, again and again.
        name: of :data:`VARIANTS`.
    """

    def __init__(self, graph: ItemGraph, samples: Sequence[MentionSample], name: str) -> None:
        from mmd.models.engines import PlainEngine
        from mmd.recommend.recommender import build_recommender
        from mmd.recommend.recommender_task import RecommenderTask

        settings = RecommenderSettings().model_copy(update=dict(VARIANTS[name]))
        self.model = build_recommender(graph, samples, settings, ConversationSettings(), 0)
        if name == SLOW:
            self.model.entities.convolution = sparse_autograd(self.model.entities.convolution)
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        self._samples, self._place = samples, 0
        self._task: RecommenderTask = RecommenderTask(self.model, samples, (), settings, 0)
        self._rate = settings.steps.learning_rate
        self._engine = PlainEngine(self.model, settings.steps)

    def steps(self, count: int, batch: int) -> None:
        """Make steps; making the batch is part of each."""
        for _ in range(count):
            picked = [self._samples[(self._place + n) % len(self._samples)] for n in range(batch)]
            self._place += batch
            made = self._task.batch(picked)
            self._engine.step([lambda made=made: self._mean(made)], self._rate)  # type: ignore[misc]  # bound early

    def measure(self, count: int, batch: int) -> None:
        """Make steps and note the mean time of one."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.steps(count, batch)
        self.wall_s.append((time.perf_counter() - wall) / count)
        self.cpu_s.append((time.process_time() - cpu) / count)

    def _mean(self, batch: Any) -> Tensor:  # noqa: ANN401 (the task's batch)
        loss, units = self._task.loss(batch)
        return loss / units


def sparse_autograd(layer: RelationalGraphConv) -> RelationalGraphConv:
    """Return a layer of the same weights whose learned coefficients are numbers of sparse matrices."""
    import torch

    from mmd.recommend.rgcn import RelationalGraphConv

    class SparseAutograd(RelationalGraphConv):
        def forward(self, own: Tensor, others: Tensor, block: Block) -> Tensor:
            offsets, column, weight = block.means.rows
            _, pair_of, _ = block.sums.rows
            row_offsets = block.sums.rows[0]
            row_of_pair = torch.empty(len(pair_of), dtype=torch.int64)
            row_of_pair[pair_of] = torch.repeat_interleave(torch.arange(len(own)), row_offsets.diff())
            pair = torch.repeat_interleave(torch.arange(len(pair_of)), offsets.diff())
            relation = torch.repeat_interleave(torch.arange(self.n_relations), torch.tensor(block.pairs))[pair]
            index = torch.stack([row_of_pair[pair], column])
            states = self.self_loop(own)
            for number, basis in enumerate(self.bases):
                values = self.shares[relation, number] * weight
                adjacency = torch.sparse_coo_tensor(index, values, (len(own), len(others)), check_invariants=False)
                states = states + torch.sparse.mm(adjacency, others) @ basis
            return cast("Tensor", states)

    slow = SparseAutograd(layer.self_loop.in_features, layer.n_relations, len(layer.bases))
    slow.load_state_dict(layer.state_dict())
    return slow


def compare(fast: Recommender, slow: Recommender) -> float:
    """Return the largest difference of two networks' states of entities, which have the same weights."""
    import torch

    with torch.no_grad():
        return float((fast.node_states().states - slow.node_states().states).abs().max())
