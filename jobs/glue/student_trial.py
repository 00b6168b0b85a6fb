"""A trial of ``sweep_gates --method conkd``: a student trained in one process, judged at every validation.

A module of its own, since Ray pickles what a job's ``__main__`` defines by value, with all that its globals hold.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.glue.recommend import RecommendJob, read_outputs
from mmd.config import change_settings
from mmd.evaluation.recommend_findings import hits_of
from mmd.evaluation.recommend_systems import Questions, Speaker
from mmd.evaluation.recommending import ItemHits
from mmd.models.threads import torch_threads
from mmd.recommend.sweep import Trial, score_of
from mmd.recommend.training import Training

if TYPE_CHECKING:
    from mmd.recommend.runs import Ground
    from mmd.recommend.saving import Talker

_ROWS_FILE = "rows.json"
Report = Callable[["StudentTrial"], None]


@dataclass(frozen=True)
class TrialPlan:
    """What all trials share; small enough to go with every process.

    Attributes:
        job: settings and inputs, ``graph`` and ``teacher`` among them.
        points: settings under ``recommend.distill``, one mapping a trial.
        outputs: folder of what the teachers say, one a trial.
        limit: perplexity that a student may have.
    """

    job: RecommendJob
    points: Sequence[Mapping[str, Any]]
    outputs: Sequence[str]
    limit: float


@dataclass
class StudentTrial:
    """One trial; its course depends on its settings and seed alone, however often it is interrupted."""

    plan: TrialPlan
    index: int
    rows: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Open what is trained."""
        from mmd.recommend.runs import student_talker, student_task

        job, self.point = self.plan.job, dict(self.plan.points[self.index])
        changes = {f"recommend.distill.{key}": value for key, value in self.point.items()}
        job = RecommendJob("student", change_settings(job.config, changes), job.store, job.inputs)
        self.ground: Ground = job.ground()
        self.talker: Talker = student_talker(self.ground, job.open("teacher"))
        task = student_task(self.ground, self.talker, read_outputs(self.plan.outputs[self.index]))
        steps = self.ground.settings.student
        self.training = Training(task, self.ground.responses.train, steps, self.ground.seed, name="student")
        self._questions = Questions.of(self.ground, "validation")

    def train(self, report: Report) -> None:
        """Make the steps that are left; ``report`` is called after each validation."""

        def on_step(row: Mapping[str, Any]) -> None:
            if found := row.get("validation"):
                self.rows.append(self._judge(row, found))
                report(self)

        with torch_threads(1):  # a process a core
            self.training.train(on_step)

    def _judge(self, row: Mapping[str, Any], found: Mapping[str, float]) -> dict[str, float]:
        """Return what the replies to the held-out contexts are worth now."""
        from mmd.recommend.generate import Generator

        settings, responses = self.ground.settings, self._questions.responses
        talker = self.talker
        generator = Generator(
            talker.backbone, talker.tokenizer, self.ground.graph, settings.generation, talker.conversations
        )
        replies = tuple(generator.replies(responses))
        hits = hits_of(Speaker("student", replies), responses, settings.sweep.cutoff)
        named = sum(hits, ItemHits())
        return {
            "validation": len(self.rows) + 1,
            "step": row["step"],
            "epoch": row["epoch"],
            "perplexity": found["perplexity"],
            "f1": named.f1(),
            "recall": named.recall(),
            "precision": named.precision(),
            "item_ratio": named.with_items / max(1, len(responses)),
        }

    @property
    def outcome(self) -> Trial:
        """The trial so far."""
        return Trial(self.point, tuple(self.rows))

    def save(self, folder: Path) -> None:
        """Save a checkpoint."""
        self.training.save(folder)
        (folder / _ROWS_FILE).write_text(json.dumps(self.rows), encoding="utf-8")

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        self.training.resume(folder)
        self.rows = json.loads((folder / _ROWS_FILE).read_text(encoding="utf-8"))


def tune_trial(config: Mapping[str, Any], plan: TrialPlan) -> None:
    """Run the trial ``index`` of a plan; Ray Tune calls it in a process of its own."""
    from ray import tune

    trial = StudentTrial(plan, int(config["index"]))
    if found := tune.get_checkpoint():
        with found.as_directory() as folder:
            trial.resume(Path(folder))

    def report(trial: StudentTrial) -> None:
        outcome = trial.outcome
        row = {
            "validation": len(trial.rows),
            "score": score_of(outcome.kept, plan.limit),
            "results": json.dumps([outcome.to_json(plan.limit)]),
        }
        with tempfile.TemporaryDirectory() as folder:
            trial.save(Path(folder))
            tune.report(row, checkpoint=tune.Checkpoint.from_directory(folder))

    trial.train(report)
