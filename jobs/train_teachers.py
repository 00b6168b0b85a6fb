"""Train ConKD's two teachers: ψ, which ranks items, and φ, which talks.

Makes teacher/NAME from graph/NAME: ψ's weights (recommender/), φ's weights and tokenizer (dialogue/), losses and
validations (training.json) and TensorBoard events. Each is a run of its own under Ray Train; kept are the weights of
the best validation, on dialogues of the training split that are not trained on.

Interrupted, the same command goes on: a killed worker is restarted from the last checkpoint, a killed driver finds it
again, and a run that was finished is not repeated. The losses are those of one process, whatever the number of workers
(but for dropout). With --force everything is trained anew.

    mmd train_teachers                                                     the built-in shop corpus
    mmd train_teachers --corpus redial=../shared/data/redial
    mmd train_teachers --set recommend.backbone.kind=lm --set recommend.backbone.model=smollm2-135m \
        --set recommend.dialogue.learning_rate=5e-5
    mmd train_teachers --set recommend.train.workers=2
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.glue.cluster import quiet_logger, ray_cluster
from jobs.glue.entry import JobContext, console, main
from jobs.glue.recommend import (
    TITLES,
    TRAINING_FILE,
    RecommendJob,
    What,
    best_metrics,
    fit_run,
    held_out_words,
    print_state,
    require_backbone,
    trained_settings,
    trains_on_cpu,
    write_training,
)
from jobs.glue.train import RunPlace, TrainingOutput, make_by_training
from mmd.artifacts import Artifact, ArtifactWriter
from mmd.models.course import TrainState
from mmd.recommend.steps import StepPlan
from mmd.recommend.training import put_finished

if TYPE_CHECKING:
    from mmd.recommend.runs import Ground

PARTS = ("conversations", "recommender", "backbone", "dialogue")
RUNS: tuple[What, ...] = ("recommender", "dialogue")


Trained = tuple[dict[What, TrainState], "Ground"]


def run(context: JobContext) -> Artifact:
    """Write teacher/NAME unless the same was trained before."""
    require_backbone(context.config)
    graph = context.open("graph")
    settings, seeds = trained_settings(context.config, *PARTS), {"teacher": context.config.seed}
    return make_by_training(
        context,
        TrainingOutput("train_teachers", "teacher", settings, {"graph": graph}, seeds),
        train=lambda place, scratch: train(context, graph, place, scratch),
        write=write,
        tell=tell,
    )


def train(context: JobContext, graph: Artifact, place: RunPlace, scratch: Path) -> Trained:
    """Train both, or find what was finished before; last checkpoints end up in ``scratch``."""
    from mmd.recommend.runs import ranked_mentions

    config, store = context.config, context.store.absolute
    states = {}
    with ray_cluster(config.cluster), quiet_logger("ray.train"):
        for what in RUNS:
            job = RecommendJob(what, config, store, {"graph": graph.ref}, on_cpu=trains_on_cpu(config))
            ground = job.ground()
            learnt = ranked_mentions(ground) if what == "recommender" else ground.responses.train
            steps = config.recommend.recommender.steps if what == "recommender" else config.recommend.dialogue
            plan = StepPlan(len(learnt), steps, config.seed)
            own = RunPlace(place.path, what)
            states[what] = fit_run(job, own, plan.total_steps, len(learnt), scratch / what)
    return states, ground


def write(writer: ArtifactWriter, trained: Trained, scratch: Path) -> dict[str, Any]:
    """Fill the artefact and return the numbers of its manifest."""
    states, ground = trained
    record = {"samples": counts_of(ground), **write_teachers(writer, ground, scratch)}
    write_training(writer, {str(what): state for what, state in states.items()}, record)
    return metrics_of(states, record)


def tell(trained: Trained, artifact: Artifact) -> None:
    """Print both courses, and what the calibrated recommendation teacher is worth."""
    (states, ground), record = trained, artifact.read_json(TRAINING_FILE)
    mentions = sum(mention.speaker == "agent" for mention in ground.mentions.validation)  # what ψ is judged on
    held_out: dict[What, str] = {
        "recommender": held_out_words(mentions, "mentions by the agent"),
        "dialogue": held_out_words(len(ground.responses.validation), "responses"),
    }
    for what in RUNS:
        print_state(TITLES[what], states[what], record["parameters"][what], held_out[what])
    if worth := record["calibrated"]:
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in worth.items())
        console.print(
            f"{TITLES['recommender']}, calibrated, on {held_out['recommender']}: {numbers}",
            markup=False,
            soft_wrap=True,
        )


def write_teachers(writer: ArtifactWriter, ground: Ground, scratch: Path) -> dict[str, dict[str, Any]]:
    """Write both with the weights of their best validations.

    Returns:
        ``parameters`` by run, and what ψ is worth as it is written, ``calibrated``.
    """
    from mmd.recommend.recommender import save_recommender
    from mmd.recommend.runs import new_talker, recommender_task
    from mmd.recommend.saving import DIALOGUE, save_talker

    task = recommender_task(ground)
    put_finished(task.model, scratch / "recommender", TITLES["recommender"])
    calibrated = task.finish()
    save_recommender(writer, task.model)
    talker = new_talker(ground)
    put_finished(talker.backbone, scratch / "dialogue", TITLES["dialogue"])
    save_talker(writer, DIALOGUE, talker, ground.graph, ground.models)
    models = {"recommender": task.model, "dialogue": talker.backbone}
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    return {"parameters": parameters, "calibrated": calibrated}


def counts_of(ground: Ground) -> dict[str, int]:
    """Return how many samples there are, by run and part."""
    return {
        "mentions": len(ground.mentions.train),
        "mentions_validation": len(ground.mentions.validation),
        "responses": len(ground.responses.train),
        "responses_validation": len(ground.responses.validation),
    }


def metrics_of(states: dict[What, TrainState], record: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of the manifest; ψ's are those of the calibrated network, which is what is written."""
    out: dict[str, Any] = dict(record["samples"])
    for what, state in states.items():
        out |= {f"{what}_parameters": record["parameters"][what], f"{what}_steps": state.step}
        out |= best_metrics(what, state)
    calibrated = {name: value for name, value in record["calibrated"].items() if name != "score"}
    return out | {f"recommender_{name}": value for name, value in calibrated.items()}


if __name__ == "__main__":
    sys.exit(main("train_teachers", __doc__, run))
