"""One unit of an experiment on ConKD in one process: a student, or a recommendation teacher, trained and judged."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import fsspec

from jobs.glue.recommend import read_outputs
from mmd.artifacts import Artifact, ArtifactStore
from mmd.config import AppConfig, build_config, change_settings
from mmd.evaluation.recommend_findings import RecommendFindings, hits_of, module_rows, speaker_row, to_json
from mmd.evaluation.recommend_pairs import response_sums
from mmd.evaluation.recommend_systems import Judged, Questions, Ranked, after_mode, by_item_head, listen, rank_mentions
from mmd.models.threads import torch_threads
from mmd.recommend.conversations import Conversations
from mmd.recommend.training import Training

if TYPE_CHECKING:
    from mmd.recommend.runs import Ground
    from mmd.recommend.saving import Talker

SUMS = "sums"
"""Key of an outcome under which each response's sums are: too many for a record."""


@dataclass(frozen=True)
class Unit:
    """One training.

    Attributes:
        name: of the variant.
        seed: of weights, order and dropout.
        settings: keys under ``recommend`` → value, as ``distill.gate`` → ``hard``.
        what: is trained.
        part_seed: of the validation part, which is its teachers'.
        teacher: reference of the teachers' artefact; of a student.
        outputs: folder of what the teachers say; of a student that is distilled.
        kept: file in which the outcome is kept; empty: nowhere.
    """

    name: str
    seed: int
    settings: Mapping[str, Any]
    what: Literal["student", "recommender"] = "student"
    part_seed: int = 0
    teacher: str = ""
    outputs: str = ""
    kept: str = ""

    @property
    def changes(self) -> dict[str, Any]:
        """The settings by their full keys."""
        return {f"recommend.{key}": value for key, value in self.settings.items()}


class StudentTrainer:
    """Trains and judges units in one process; an actor of Ray Tune holds one.

    Args:
        config: settings, as plain values, with a store that is found from here.
        graph: reference of the graph artefact.
        judged: whose responses judge.
    """

    def __init__(self, config: Mapping[str, Any], graph: str, judged: Judged) -> None:
        self._config: AppConfig = build_config(config)
        self._judged = judged
        self._store = ArtifactStore(self._config.store)
        self._conversations = Conversations(self._store.open(graph, verify=False))

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Run the units, given as mappings; return their outcomes in brief, for the eye."""
        return [brief(self.run(Unit(**unit))) for unit in batch]

    def run(self, unit: Unit) -> dict[str, Any]:
        """Train and judge one unit, or read what came of it before."""
        if found := read_outcome(unit.kept):
            return {**found, "name": unit.name}
        # A process a core: threads that wait for each other on cores that others hold cost tens of times the work.
        with torch_threads(1):
            outcome = self._recommender(unit) if unit.what == "recommender" else self._student(unit)
        write_outcome(unit.kept, outcome)
        return outcome

    def ground(self, unit: Unit) -> Ground:
        """Return what the unit's training stands on."""
        from mmd.recommend.runs import Ground

        config = change_settings(self._config, unit.changes)
        return Ground(self._conversations, config.recommend, unit.seed, config.models, unit.part_seed)

    def _student(self, unit: Unit) -> dict[str, Any]:
        from mmd.recommend.runs import student_talker, student_task

        ground, teacher = self.ground(unit), self._store.open(unit.teacher, verify=False)
        talker = student_talker(ground, teacher)
        task = student_task(ground, talker, read_outputs(unit.outputs) if unit.outputs else None)
        training = Training(
            task,
            ground.responses.train,
            ground.settings.student,
            ground.seed,
            name=unit.name,
            judge_start=ground.settings.distill.start == "teacher",
        )
        trained = self._train(training) | started_from(ground, teacher)
        started = time.perf_counter()
        told = judge_student(talker, ground, Questions.of(ground, self._judged))
        return self._told(unit, trained | {"judge_s": round(time.perf_counter() - started, 1)} | told)

    def _recommender(self, unit: Unit) -> dict[str, Any]:
        from mmd.recommend.recommender import LoadedRecommender
        from mmd.recommend.runs import ranked_mentions, recommender_task

        ground = self.ground(unit)
        task = recommender_task(ground, "cpu")
        training = Training(
            task, ranked_mentions(ground), ground.settings.recommender.steps, ground.seed, name=unit.name
        )
        trained = self._train(training)
        trained["validation"] = {key: round(value, 5) for key, value in task.finish().items()}
        questions = Questions.of(ground, self._judged)
        recommender = LoadedRecommender(task.model, task.maker)
        ranked = rank_mentions("recommender", recommender.item_log_probs, questions.mentions)
        return self._told(unit, trained | told_of(questions, [ranked], task.model))

    def _train(self, training: Training[Any]) -> dict[str, Any]:
        started = time.perf_counter()
        training.train()
        training.take_best()
        state = training.state
        return {
            "train_s": round(time.perf_counter() - started, 1),
            "steps": state.step,
            "best_step": state.best_step,
            "validation": {key: round(value, 5) for key, value in (state.best or {}).items()},
        }

    def _told(self, unit: Unit, told: Mapping[str, Any]) -> dict[str, Any]:
        return {"name": unit.name, "seed": unit.seed, "settings": dict(unit.settings), **told}


def started_from(ground: Ground, teacher: Artifact) -> dict[str, Any]:
    """Return where a student's training began: steps that its weights had made before, None if that is not known."""
    start = ground.settings.distill.start
    before = teacher.manifest.metrics.get("dialogue_step") if start == "teacher" else 0
    return {"start": start, "steps_before": None if before is None else int(before)}


def judge_student(talker: Talker, ground: Ground, questions: Questions) -> dict[str, Any]:
    """Let a student answer, read the right responses and rank items; return what it is worth.

    Items are ranked by what it would name first (``first named``), at the places of right responses (``at its place``)
    and, by a student that learnt it, from the context alone (``item head``).
    """
    import torch

    from mmd.recommend.generate import Generator

    talker.backbone.dtype = torch.float32
    generator = Generator(
        talker.backbone, talker.tokenizer, ground.graph, ground.settings.generation, talker.conversations
    )
    speaker = listen("student", generator, questions.responses)
    rankers = [rank_mentions("first named", after_mode(generator), questions.mentions)]
    if speaker.reading:
        rankers.append(speaker.reading.ranked("at its place", questions.mentions))
    if ground.settings.distill.gate == "none":
        rankers.append(rank_mentions("item head", by_item_head(generator), questions.mentions))
    told = told_of(questions, rankers, talker.backbone)
    [said] = to_json(
        RecommendFindings(
            questions.split,
            questions.mentions,
            questions.responses,
            modules=(),
            speakers=[speaker_row(speaker, questions.responses, resamples=0, seed=0)],
        )
    )["speakers"]
    likelihoods = speaker.reading.likelihoods if speaker.reading else ()
    sums = response_sums(hits_of(speaker, questions.responses, 1), likelihoods)
    dialogues = {name: n for n, name in enumerate(dict.fromkeys(s.dialogue_id for s in questions.responses))}
    return {
        **told,
        "speaker": said,
        SUMS: {
            "dialogues": [dialogues[sample.dialogue_id] for sample in questions.responses],
            "rows": [[round(value, 5) for value in row] for row in sums.tolist()],
        },
    }


def told_of(questions: Questions, rankers: Sequence[Ranked], model: Any) -> dict[str, Any]:  # noqa: ANN401 (torch's)
    """Return recall of rankers by name, subset and k, and how large a model is."""
    recall: dict[str, dict[str, dict[str, float]]] = {}
    for row in module_rows(questions.mentions, rankers, resamples=0, seed=0):
        values = {f"R@{k}": round(found.value, 5) for k, found in row.recall.items()}
        recall.setdefault(row.system, {})[row.subset] = values
    return {
        "split": questions.split,
        "responses": len(questions.responses),
        "mentions": len(questions.mentions),
        "parameters": sum(p.numel() for p in model.parameters()),
        "recall": recall,
    }


def brief(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a line can tell of an outcome."""
    told: dict[str, Any] = {key: outcome[key] for key in ("name", "seed", "train_s", "steps", "best_step")}
    told |= {f"{name} {k}": value for name, recall in outcome["recall"].items() for k, value in recall["all"].items()}
    if "speaker" in outcome:
        said = outcome["speaker"]
        told |= {"F1@1": said["items"]["micro"]["F1@1"]["value"], "perplexity": said["perplexity"]["value"]}
    return told


def read_outcome(path: str) -> dict[str, Any] | None:
    """Return an outcome that was kept, None if there is none."""
    if not path:
        return None
    fs, place = fsspec.core.url_to_fs(path)
    if not fs.exists(place):
        return None
    found: dict[str, Any] = json.loads(fs.cat_file(place))
    return found


def write_outcome(path: str, outcome: Mapping[str, Any]) -> None:
    """Keep an outcome; a file of that name is complete."""
    if not path:
        return
    fs, place = fsspec.core.url_to_fs(path)
    fs.makedirs(place.rpartition("/")[0], exist_ok=True)
    fs.pipe_file(f"{place}.part", json.dumps(outcome).encode())
    fs.mv(f"{place}.part", place)
