"""Distil ConKD's student, which talks and recommends, from both teachers.

Makes student/NAME from teacher/NAME and the graph that it was trained on: weights and tokenizer (student/), losses and
validations (training.json) and TensorBoard events; no teacher is needed to use it. First the teachers are asked about
every training response, once (Ray Data; `recommend.distill.top_tokens` and `top_items` say how much is kept), then the
student is trained under Ray Train. With `recommend.distill.gate=none` no teacher is asked: words and items are learnt
together, for comparison.

Interrupted, the same command goes on where it was: parts of the teachers' outputs that are there are not made again, a
killed worker is restarted from the last checkpoint, and a killed driver finds it. What the teachers said is kept beside
the artefacts for other students of the same teachers, until `mmd artifacts gc` finds it older than a day.

    mmd distill                                                         the built-in shop corpus
    mmd distill --corpus redial=../shared/data/redial --set recommend.distill.gate=hard
    mmd distill --set recommend.distill.gate=none
    mmd distill --set recommend.train.workers=2
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.glue.cluster import quiet_logger, ray_cluster
from jobs.glue.entry import JobContext, main
from jobs.glue.outputs import OutputsPlan, write_outputs
from jobs.glue.recommend import (
    TITLES,
    RecommendJob,
    best_metrics,
    fit_run,
    held_out_words,
    print_state,
    read_outputs,
    trained_settings,
    trains_on_cpu,
    write_training,
)
from jobs.glue.train import RunPlace, TrainingOutput, make_by_training
from jobs.glue.tune import only_run
from mmd.artifacts import Artifact, ArtifactWriter, fingerprint
from mmd.models.course import TrainState
from mmd.recommend.steps import StepPlan
from mmd.recommend.training import put_finished

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmd.recommend.runs import Ground


Trained = tuple[RecommendJob, TrainState, dict[str, Any]]


def run(context: JobContext) -> Artifact:
    """Write student/NAME unless the same was distilled before."""
    inputs = context.lineage("teacher")
    settings = trained_settings(context.config, "conversations", "backbone", "student", "distill")
    return make_by_training(
        context,
        TrainingOutput("distill", "student", settings, inputs, {"student": context.config.seed}),
        train=lambda place, scratch: train(context, inputs, place, scratch),
        write=write,
        tell=lambda trained, artifact: print_state(
            TITLES["student"],
            trained[1],
            artifact.manifest.metrics["parameters"],
            held_out_words(artifact.manifest.metrics["validation"], "responses"),
        ),
    )


def train(context: JobContext, inputs: Mapping[str, Artifact], place: RunPlace, scratch: Path) -> Trained:
    """Ask the teachers, train the student, or find what was finished before.

    Returns:
        The job, the run's course (its last checkpoint ends up in ``scratch``), and what else is to be recorded.
    """
    config, distill = context.config, context.config.recommend.distill
    with ray_cluster(config.cluster), quiet_logger("ray.train"):
        job = RecommendJob(
            what="student",
            config=config,
            store=context.store.absolute,
            inputs={role: artifact.ref for role, artifact in inputs.items()},
            on_cpu=trains_on_cpu(config),
        )
        ground = job.ground()
        record: dict[str, Any] = {
            "samples": {"train": len(ground.responses.train), "validation": len(ground.responses.validation)}
        }
        if distill.gate != "none":
            job = replace(job, outputs=ask_teachers(context, job, ground))
            outputs = read_outputs(str(job.outputs))
            tails = dict(zip(("dialogue", "recommender"), outputs.mean_tails, strict=True))
            record["outputs"] = {"bytes": outputs.nbytes, "positions": len(outputs.masses), "mean_tails": tails}
        plan = StepPlan(len(ground.responses.train), config.recommend.student, config.seed)
        state = fit_run(job, RunPlace(place.path, "run"), plan.total_steps, plan.samples, scratch / "run")
    return job, state, record


def ask_teachers(context: JobContext, job: RecommendJob, ground: Ground) -> str:
    """Compute what these very teachers say of the training responses, unless that is there; return its folder.

    With ``force`` it is computed anew.
    """
    from mmd.recommend.runs import student_talker

    distill = context.config.recommend.distill
    key = fingerprint(
        {
            "inputs": job.digests(),
            "kept": distill.model_dump(mode="json", include={"top_tokens", "top_items", "temperature"}),
            "conversations": context.config.recommend.conversations.model_dump(mode="json"),
        }
    )
    place = RunPlace(context.scratch(".train"), f"outputs-{context.name}-{key[:12]}")
    maker = student_talker(ground, job.open("teacher")).maker  # refuses another vocabulary before hours go into it
    with only_run(place.path):
        if context.force:
            place.remove()
        write_outputs(OutputsPlan(job, place.path), place, ground, maker)
    return place.path


def write(writer: ArtifactWriter, trained: Trained, scratch: Path) -> dict[str, Any]:
    """Fill the artefact and return the numbers of its manifest."""
    from mmd.recommend.runs import student_talker
    from mmd.recommend.saving import STUDENT, save_talker

    job, state, record = trained
    ground = job.ground()
    talker = student_talker(ground, job.open("teacher"))
    put_finished(talker.backbone, scratch / "run", TITLES["student"])
    save_talker(writer, STUDENT, talker, ground.graph, ground.models)
    record = record | {"parameters": sum(p.numel() for p in talker.backbone.parameters())}
    write_training(writer, {"student": state}, record)
    return metrics_of(state, record)


def metrics_of(state: TrainState, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of the manifest."""
    return {
        "samples": record["samples"]["train"],
        "validation": record["samples"]["validation"],
        "steps": state.step,
        "parameters": record["parameters"],
        "outputs_bytes": record.get("outputs", {}).get("bytes", 0),
        **best_metrics("student", state),
    }


if __name__ == "__main__":
    sys.exit(main("distill", __doc__, run))
