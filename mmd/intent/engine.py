"""The engine behind online intent recognition: trained artefacts and extractors in one object, called in process.

It goes the same way as evaluation, from a :class:`~mmd.schema.Dialogue` through
:func:`~mmd.intent.examples.make_example` and the gate; only the features are computed on the spot instead of being
read, with the extractors that the features artefact names. A part that is missing or fails is left out and
named in the answer; it does not fail the request. So it is with the large model: where it fails or is late, the rules
and the probe answer.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from mmd.artifacts import ArtifactStore
from mmd.errors import MmdError, ModelError, RequestError, ServerUnavailableError
from mmd.intent.examples import make_example, vector_texts
from mmd.intent.gate import MLLM_ARMS, NEVER, Gate, TaskGate
from mmd.intent.online import OnlineFeatures, OnlineSettings
from mmd.intent.settings import GateSettings
from mmd.intent.timed import TimedCalls
from mmd.intent.types import ImageFacts, IntentExample, IntentPrediction, Vector
from mmd.intent.wording import describe_rule
from mmd.models.threads import torch_threads
from mmd.schema import Dialogue, Image, Item

LANGUAGES = ("en", "zh")
SHAPES = ("text", "picture", "text+picture")
_WITHOUT_MLLM = "rules and probe answered"
_RARE = 0.01  # a shape that fewer than this share of a task's training dialogues have is an accident


# ---------------------------------------------------------------- what goes in and out


@dataclass(frozen=True)
class IntentQuery:
    """A dialogue to recognise, with the pictures that its turns name by id.

    ``task`` None asks every task whose training dialogues have this one's shape. Pictures that carry OCR keep it.
    """

    dialogue: Dialogue
    task: str | None = None
    images: Mapping[str, Image] = field(default_factory=dict)


@dataclass(frozen=True)
class IntentAnswer:
    """The predictions of one query, one a task, and how they came about.

    ``mllm_shares`` maps task → the large model's share in the classifier that answered: 0 the probe alone, 1 the
    large model alone. ``words`` maps rule id → language → sentence for every fired rule; ``degraded`` names the parts
    that were left out and why; ``timings_ms`` has the stages ``pictures``, ``texts`` and ``decide`` (the last two
    shared by a batch).
    """

    predictions: tuple[IntentPrediction, ...]
    mllm_shares: Mapping[str, float]
    words: Mapping[str, Mapping[str, str]]
    degraded: tuple[str, ...]
    timings_ms: Mapping[str, float]
    artifacts: Mapping[str, str]


@dataclass(frozen=True)
class PreparedQuery:
    """A query whose pictures have been read; the slow part that is not worth batching.

    ``asked_s`` is the :func:`time.monotonic` at which its pictures were read: what it waits for others counts.
    """

    query: IntentQuery
    tasks: tuple[str, ...]
    images: Mapping[str, ImageFacts]
    problems: tuple[str, ...]
    pictures_ms: float
    asked_s: float


@dataclass(frozen=True)
class IntentModel:
    """Everything that was trained.

    Args:
        gate: rules, classifiers and how they are joined; its large models are those that it asks.
        tasks: task → labels, those that are answered.
        shapes: task → the shapes (of :data:`SHAPES`) of its training dialogues.
        items: the catalogue.
        artifacts: role → reference, repeated in answers.
        degraded: what was missing at loading, repeated in answers.
    """

    gate: Gate
    tasks: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, frozenset[str]]
    items: Mapping[str, Item] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()

    def looks_at_pixels(self, tasks: Iterable[str]) -> bool:
        """Say whether a large model that one of these tasks asks looks at pictures itself."""
        return any(task in self.gate.mllms and self.gate.mllms[task].needs_pictures for task in tasks)


# ---------------------------------------------------------------- the engine


class IntentEngine:
    """Recognises intents with a trained model; safe to call from several threads.

    Args:
        model: what was trained.
        features: reads pictures and texts that come without features.
        settings: time limit and threads of the large model.
    """

    def __init__(self, model: IntentModel, features: OnlineFeatures, settings: OnlineSettings | None = None) -> None:
        self.model = model
        self._settings = settings or OnlineSettings()
        self._features = features
        self._fallback = without_mllms(model.gate)
        self._timed = TimedCalls(self._settings.mllm_timeout_s) if model.gate.mllms else None
        self._rules = {rule.id: rule for rule in model.gate.rulebase.rules}

    # ------------------------------------------------------------ answering

    def predict(self, queries: Sequence[IntentQuery]) -> list[IntentPrediction]:
        """Return the predictions of all queries in order; a query that names its task has one.

        Raises:
            RequestError: see :meth:`tasks_for`.
        """
        return [p for answer in self.answer(queries) for p in answer.predictions]

    def answer(self, queries: Sequence[IntentQuery]) -> list[IntentAnswer]:
        """Return one answer a query, in order.

        Raises:
            RequestError: see :meth:`tasks_for`.
        """
        return self.decide([self.prepare(query) for query in queries])

    def tasks_for(self, query: IntentQuery) -> tuple[str, ...]:
        """Return the tasks that a query asks: the named one, or all that were trained on dialogues of its shape.

        Raises:
            RequestError: the task is unknown, or there is none of this shape.
        """
        have = ", ".join(self.model.tasks)
        if query.task is not None:
            if query.task not in self.model.tasks:
                raise RequestError(f"task: {query.task[:80]!r} is unknown; this service answers {have}.")
            return (query.task,)
        shape = shape_of(query.dialogue)
        found = tuple(task for task in self.model.tasks if shape in self.model.shapes.get(task, ()))
        if not found:
            raise RequestError(
                f"task: no task was trained on dialogues of {shape} alone; name one to ask it all the same: {have}."
            )
        return found

    def prepare(self, query: IntentQuery) -> PreparedQuery:
        """Resolve the tasks and read the pictures of one query: OCR where they come without, and image vectors.

        Raises:
            RequestError: see :meth:`tasks_for`.
        """
        tasks = self.tasks_for(query)
        started = time.perf_counter()
        facts, problems = self._features.look(query.images, pixels=self.model.looks_at_pixels(tasks))
        pictures_ms = (time.perf_counter() - started) * 1000
        # The large model's time begins here: slow OCR of its pictures is no reason to leave it out.
        return PreparedQuery(query, tasks, facts, problems, pictures_ms, asked_s=time.monotonic())

    def decide(self, prepared: Sequence[PreparedQuery]) -> list[IntentAnswer]:
        """Read the texts of several prepared queries together and predict all their tasks together."""
        started = time.perf_counter()
        wanted = [vector_texts(entry.query.dialogue, entry.images) for entry in prepared]
        vectors, problem = self._features.read(text for texts in wanted for text in texts)
        read = time.perf_counter()
        examples = [self._example(entry, task, vectors) for entry in prepared for task in entry.tasks]
        judged = iter(self._judge(examples, [entry.asked_s for entry in prepared for _ in entry.tasks]))
        decided = time.perf_counter()
        timings = {"texts": (read - started) * 1000, "decide": (decided - read) * 1000}
        return [
            self._answer(entry, [next(judged) for _ in entry.tasks], problem if texts else None, timings)
            for entry, texts in zip(prepared, wanted, strict=True)
        ]

    def _judge(self, examples: Sequence[IntentExample], asked_s: Sequence[float]) -> list[_Judged]:
        """Predict examples of any tasks that were asked at those times.

        Those that ask a large model have its time limit, and a way without it. What has waited for more than half of
        the limit is left to that way at once, so that under a load beyond the model's speed nothing piles up.
        """
        mllms, limit_s, now = self.model.gate.mllms, self._settings.mllm_timeout_s, time.monotonic()
        routes: dict[str, list[int]] = {"plain": [], "late": [], "mllm": []}
        for i, example in enumerate(examples):
            route = "plain" if example.task not in mllms else "mllm" if now - asked_s[i] <= limit_s / 2 else "late"
            routes[route].append(i)
        judged: dict[int, _Judged] = {}
        for route, rows in routes.items():
            batch = [examples[i] for i in rows]
            if route == "plain":
                found = _judged(self.model.gate, batch)
            elif route == "late":
                found = _judged(self._fallback, batch, f"mllm: too many questions are waiting; {_WITHOUT_MLLM}")
            else:
                found = self._ask_mllm(batch, min((asked_s[i] for i in rows), default=now) + limit_s)
            judged.update(zip(rows, found, strict=True))
        return [judged[i] for i in range(len(examples))]

    def _ask_mllm(self, examples: Sequence[IntentExample], deadline: float) -> list[_Judged]:
        """Predict with the large model; an example that it fails on is left to rules and probe, and spoils no other."""
        if not examples or self._timed is None:
            return []
        try:
            return self._timed(lambda: self._with_mllm(examples), deadline=deadline)
        except TimeoutError as err:
            problem = str(err)
        except Exception as err:  # noqa: BLE001 (whatever the model's library raises: the turn goes on)
            if len(examples) > 1 and not isinstance(err, ServerUnavailableError):  # which no example is to blame for
                return [found for example in examples for found in self._ask_mllm([example], deadline)]
            problem = _failure(err)
        return _judged(self._fallback, examples, f"mllm: {problem}; {_WITHOUT_MLLM}")

    def _with_mllm(self, examples: Sequence[IntentExample]) -> list[_Judged]:
        with torch_threads(self._settings.models.threads):
            judged = _judged(self.model.gate, examples)
        require_numbers(found.prediction.confidence for found in judged)
        return judged

    def _answer(
        self, entry: PreparedQuery, judged: Sequence[_Judged], text_problem: str | None, timings: Mapping[str, float]
    ) -> IntentAnswer:
        problems = [*self.model.degraded, *entry.problems]
        if text_problem:
            problems.append(text_problem)
        problems += dict.fromkeys(found.problem for found in judged if found.problem)
        predictions = tuple(found.prediction for found in judged)
        return IntentAnswer(
            predictions=predictions,
            mllm_shares={found.prediction.task: found.mllm_share for found in judged},
            words={fired.rule_id: self.words(fired.rule_id) for p in predictions for fired in p.fired},
            degraded=tuple(problems),
            timings_ms={"pictures": entry.pictures_ms, **timings},
            artifacts=self.model.artifacts,
        )

    def words(self, rule_id: str) -> dict[str, str]:
        """Return a rule as a sentence in each of :data:`LANGUAGES`."""
        prototypes = self.model.gate.rulebase.prototypes
        return {language: describe_rule(self._rules[rule_id], language, prototypes) for language in LANGUAGES}

    def _example(self, entry: PreparedQuery, task: str, vectors: Mapping[str, Vector]) -> IntentExample:
        dialogue = replace(entry.query.dialogue, labels={})  # nothing here may know the answer
        return make_example(dialogue, task, images=entry.images, items=self.model.items, text_vectors=vectors)

    @classmethod
    def from_store(
        cls,
        store: ArtifactStore,
        name: str,
        *,
        refs: Mapping[str, str] | None = None,
        settings: OnlineSettings | None = None,
    ) -> IntentEngine:
        """Load what was trained on a corpus, and the extractors that it was trained with.

        Args:
            store: where the artefacts are.
            name: name of the corpus and of everything made from it.
            refs: role (``corpus``, ``features``, ``rulebase``, ``classifier``, ``adapter``, ``gate``) →
                ``kind/name@version`` where another version is wanted than the newest gate and what it was made from.
            settings: of the extractors.

        Raises:
            ArtifactError: corpus, features or rule base are missing or damaged.
            ModelError: an extractor here differs from the one that the model was trained with, or a wanted adapter
                cannot be used here.
        """
        from mmd.intent.loading import load_engine_parts  # noqa: PLC0415 (it needs this module's classes)

        settings = settings or OnlineSettings()
        model, features = load_engine_parts(store, name, refs or {}, settings)
        return cls(model, features, settings)


@dataclass(frozen=True, slots=True)
class _Judged:
    """A prediction, the large model's share in its classifier, and what was left out on the way."""

    prediction: IntentPrediction
    mllm_share: float
    problem: str | None = None


def _judged(gate: Gate, examples: Sequence[IntentExample], problem: str | None = None) -> list[_Judged]:
    shares = {task: mllm_share(gate, task) for task in {example.task for example in examples}}
    return [_Judged(p, shares[p.task], problem) for p in gate.predict(examples)]


def _failure(err: Exception) -> str:
    """Return what an answer may say of an error; the log has its place. A message might quote the dialogue."""
    if isinstance(err, MmdError):
        return f"failed ({err})"
    where = "".join(traceback.format_list(traceback.extract_tb(err.__traceback__)))
    structlog.get_logger(__name__).error("mllm_failed", error=type(err).__name__, where=where)
    return f"failed ({type(err).__name__}; the log has where)"


def require_numbers(values: Iterable[float]) -> None:
    """Raise unless all are finite: a model that overflowed in half precision, or diverged, has no say.

    Raises:
        ModelError: one is not.
    """
    if not all(map(math.isfinite, values)):
        raise ModelError("its probabilities are not numbers; try models.dtype=float32, or fine-tune again")


def mllm_share(gate: Gate, task: str) -> float:
    """Return the large model's share in a task's classifier, in [0, 1]."""
    how = gate.setting(task)
    if task not in gate.mllms or not how.asks_mllm:
        return 0.0
    return 1.0 if how.arm == "mllm_only" else how.mllm


def without_mllms(gate: Gate) -> Gate:
    """Return the gate as it answers when no large model does: rules and probe, with what else was chosen kept."""
    return replace(gate, mllms={}, tasks={task: without_mllm(how) for task, how in gate.tasks.items()})


def without_mllm(gate: TaskGate) -> TaskGate:
    """Return a task's gate without the large model; an arm that is nothing without it becomes the rules' vote."""
    if gate.arm not in MLLM_ARMS:
        return replace(gate, mllm=0.0)
    deaf = gate.arm == "prompt" and gate.tau > 1.0  # rules were not to be heard
    return TaskGate(gate.task, "vote", tau=NEVER if deaf else 0.0, weight=GateSettings().vote_weights[0])


def shape_of(dialogue: Dialogue) -> str:
    """Return the shape of a dialogue, one of :data:`SHAPES`: what its customer sent."""
    text = any(turn.speaker == "user" and turn.text.strip() for turn in dialogue.turns)
    picture = any(turn.image_ids for turn in dialogue.turns)
    return "text+picture" if text and picture else "picture" if picture else "text"


def training_shapes(dialogues: Iterable[Dialogue], tasks: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return task → the shapes that its training dialogues have, accidents left out."""
    counts: dict[str, Counter[str]] = {task: Counter() for task in tasks}
    for dialogue in dialogues:
        for task in dialogue.labels.keys() & counts.keys():
            counts[task][shape_of(dialogue)] += 1
    return {
        task: frozenset(shape for shape, n in found.items() if n >= _RARE * found.total())
        for task, found in counts.items()
    }
