"""Choose gate, η, γ and temperature of ConKD's distillation: `mmd sweep_gates --method conkd`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jobs.distill import ask_teachers
from jobs.glue.cluster import quiet_logger, ray_cluster
from jobs.glue.entry import JobContext, console
from jobs.glue.recommend import RecommendJob, trained_settings
from jobs.glue.student_trial import TrialPlan, tune_trial
from jobs.glue.sweeping import SweepRun, record_found, recorded, with_space
from jobs.glue.tune import import_tune, run_trials
from mmd.artifacts import Artifact, version_for
from mmd.config import change_settings
from mmd.errors import ArtifactError
from mmd.evaluation.recommend_systems import Questions
from mmd.recommend.steps import StepPlan
from mmd.recommend.sweep import TRIED, Trial, by_gate, choose, points_of, score_of
from mmd.sweeps import types as recorded_types
from mmd.tables import plain_table

if TYPE_CHECKING:
    from mmd.recommend.runs import Ground

SWEEP_FILE = "conkd.json"


def run(context: JobContext) -> Artifact:
    """Write gate/NAME-conkd unless the same was swept before."""
    context = with_space(context, "conkd")
    inputs, name = context.lineage("teacher"), f"{context.name}-conkd"
    settings = trained_settings(
        context.config, "conversations", "backbone", "student", "distill", "sweep", "generation"
    )
    seeds = {"student": context.config.seed}
    version = version_for("gate", settings, inputs, seeds)
    if found := context.existing("gate", settings, inputs, seeds, name):
        record_found(context, "conkd", version, found)
        return found
    limit = perplexity_limit(inputs["teacher"], context.config.recommend.sweep.perplexity_margin)
    with recorded(context, "conkd", version, partial(students_of, limit)) as record:
        trials = sweep(context, inputs, limit, f"sweep_conkd-{context.name}-{version}", record)
        chosen = choose(trials, limit)
        with context.store.write(
            "gate", name, settings=settings, inputs=inputs, seeds=seeds, replace=context.force
        ) as writer:
            writer.write_json(
                SWEEP_FILE,
                {
                    "chosen": dict(chosen.point),
                    "by_gate": {gate: trial.to_json(limit) for gate, trial in by_gate(trials, limit).items()},
                    "perplexity_limit": limit,
                    "trials": [trial.to_json(limit) for trial in trials],
                },
            )
            writer.metrics = metrics_of(chosen, trials, limit)
        record.made(f"gate/{name}@{version}")
    print_trials(trials, chosen, limit, context.config.recommend.sweep.cutoff)
    return context.store.open(f"gate/{name}@{version}")


def perplexity_limit(teacher: Artifact, margin: float) -> float:
    """Return the perplexity that a student may have on held-out responses.

    Raises:
        ArtifactError: the teacher was trained without any.
    """
    found = teacher.manifest.metrics.get("dialogue_perplexity")
    if found is None:
        raise ArtifactError(
            f"{teacher.ref}: was trained without held-out responses, so nothing can be chosen on them; the training "
            "split needs more dialogues, or a larger recommend.conversations.validation_fraction."
        )
    return float(found) * (1 + margin)


def sweep(
    context: JobContext, inputs: Mapping[str, Artifact], limit: float, run_name: str, record: SweepRun | None = None
) -> list[Trial]:
    """Train a student for each point, the worse ones not to their end; return all trials in the points' order."""
    import_tune()
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    config = context.config
    settings = config.recommend.sweep
    points = points_of(settings, config.recommend.distill)
    if record:
        record.expect(len(points))

    def tell(told: list[dict[str, Any]]) -> None:
        print_trial(told[0])
        if record:
            record.tell(told)

    with ray_cluster(config.cluster), quiet_logger("ray.train"):
        refs = {role: artifact.ref for role, artifact in inputs.items()}
        job = RecommendJob("student", config, context.store.absolute, refs)
        ground = job.ground()
        Questions.of(ground, "validation")  # says so before anything is trained
        temperatures = [point["temperature"] for point in points]
        outputs = {value: ask(context, job, ground, value) for value in dict.fromkeys(temperatures)}
        plan = TrialPlan(job, points, [outputs[value] for value in temperatures], limit)
        steps = StepPlan(len(ground.responses.train), config.recommend.student, config.seed)
        last = max(settings.rung, sum(map(steps.is_due, range(1, steps.total_steps + 1))))
        scheduler = ASHAScheduler(
            time_attr="validation",
            metric="score",
            mode="max",
            max_t=last + 1,  # the training's own end, not the scheduler's
            grace_period=settings.rung,
            reduction_factor=settings.keep,
        )
        found = run_trials(
            tune.with_resources(tune.with_parameters(tune_trial, plan=plan), {"cpu": 1}),
            len(points),
            tune.TuneConfig(max_concurrent_trials=config.tune.max_concurrent, scheduler=scheduler),
            storage=context.scratch(".tune"),
            name=run_name,
            title="distillation",
            force=context.force,
            tell=tell,
            follow=record.follow if record else None,
        )
        if record:  # those that an interrupted run had finished are not told as they end
            record.tell(found)
    return [Trial(told["point"], told["rows"]) for told in found]


def ask(context: JobContext, job: RecommendJob, ground: Ground, temperature: float) -> str:
    """Return the folder of what the teachers say at a temperature, with ``force`` computed anew."""
    changed = change_settings(context.config, {"recommend.distill.temperature": temperature})
    return ask_teachers(replace(context, config=changed), replace(job, config=changed), ground)


# ---------------------------------------------------------------- what is told


def students_of(limit: float, result: Mapping[str, Any]) -> list[recorded_types.Trial]:
    """Return what is recorded of one student so far: the score of its kept weights, and that of each validation."""
    point, rows = result["point"], result["rows"]
    setting = {key: point[key] for key in TRIED if key != "eta" or point["gate"] == "hard"}
    kept = {name: float(value) for name, value in result["kept"].items()}
    curve = tuple((float(row["validation"]), score_of(row, limit)) for row in rows)
    return [recorded_types.Trial(setting=setting, metrics={"score": float(result["score"]), **kept}, curve=curve)]


def words_of(point: Mapping[str, Any]) -> str:
    """Return a point as ``--set`` options."""
    read = [key for key in TRIED if key != "eta" or point["gate"] == "hard"]
    return " ".join(f"--set recommend.distill.{key}={point[key]}" for key in read)


def print_trial(told: Mapping[str, Any]) -> None:
    """Print a line when a trial ends."""
    kept, point = told["kept"], told["point"]
    console.print(
        f"{', '.join(f'{key} {point[key]}' for key in TRIED)}: {len(told['rows'])} validations, F1 {kept['f1']:.4f}, "
        f"perplexity {kept['perplexity']:.3f}",
        markup=False,
        soft_wrap=True,
    )


def print_trials(trials: Sequence[Trial], chosen: Trial, limit: float, cutoff: int) -> None:
    """Print the table of trials, the chosen one marked, and what to type to distil with it."""
    heads = (*TRIED, "validations", f"F1@{cutoff}", "perplexity", "item ratio")
    table = plain_table(*heads, title=f"held-out responses; perplexity at most {limit:.3f}")
    for trial in sorted(trials, key=lambda trial: -trial.kept["f1"]):
        mark = "*" if trial is chosen else ""
        numbers = [f"{trial.kept[key]:.4g}" for key in ("f1", "perplexity", "item_ratio")]
        table.add_row(*(str(trial.point[key]) for key in TRIED), f"{len(trial.rows)}{mark}", *numbers)
    console.print(table)
    if len(trials) > 1:
        console.print(
            f"The chosen one's numbers are the best of {len(trials)} on the responses that chose it, better than they "
            "will be on others: `mmd evaluate_recommend` tells what it is worth.",
            markup=False,
            soft_wrap=True,
        )
    console.print(f"mmd distill {words_of(chosen.point)}", markup=False, soft_wrap=True)


def metrics_of(chosen: Trial, trials: Sequence[Trial], limit: float) -> dict[str, Any]:
    """Return the numbers of the manifest."""
    return {
        **{key: chosen.point[key] for key in TRIED},
        "f1": chosen.kept["f1"],
        "perplexity": chosen.kept["perplexity"],
        "perplexity_limit": limit,
        "trials": len(trials),
        "validations": sum(len(trial.rows) for trial in trials),
    }
