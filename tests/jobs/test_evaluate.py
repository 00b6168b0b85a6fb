"""fit_intent and evaluate on a tiny corpus: skipped when done, test ids kept out, errors with the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import evaluate, fit_intent
from jobs.glue.entry import JobContext
from mmd import schema
from mmd.artifacts import Artifact
from mmd.config import build_config
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError, CorpusError
from mmd.features.store import INFO_FILE
from mmd.intent.examples import load_examples
from mmd.intent.firings import save_firings
from mmd.intent.miner import in_order, join, mine_task
from mmd.intent.rulebase import RuleBase
from mmd.schema import Dialogue, Turn, dialogue_to_row

ASKED = {
    "退款": "please refund order",
    "colour": "does it come in green or blue",
    "delivery": "when will it arrive here",
}
SEARCH = {"rollouts": 30, "seeds": 1}


def context(store: Path, **evaluation: object) -> JobContext:
    values = {
        "store": str(store),
        "data": {"corpus": {"name": "tiny"}},
        "intent": {"folds": 3, "search": SEARCH},
        "evaluation": {"latency_samples": 2, "bootstrap_resamples": 20} | evaluation,
    }
    return JobContext(build_config(values))


def dialogues(*, labelled: bool = True, test: bool = True) -> list[Dialogue]:
    rows = []
    for number in range(24):
        label = list(ASKED)[number % 3]
        turns = (Turn("user", f"{ASKED[label]} {number}"), Turn("agent", "one moment"))
        split: schema.Split = "test" if test and number >= 18 else "train"
        rows.append(Dialogue(f"{split}-{number}", "made-up", split, turns, {"intent": label} if labelled else {}))
    return rows


def prepare(job: JobContext, rows: list[Dialogue], tasks: dict[str, list[str]] | None = None) -> None:
    """Write corpus, features and rule base, as the jobs before these do."""
    with job.store.write("corpus", "tiny", settings={}) as writer:
        writer.write_table("dialogues", pa.Table.from_pylist([dialogue_to_row(d) for d in rows], schema.DIALOGUES))
        writer.write_json("tasks.json", {"intent": list(ASKED)} if tasks is None else tasks)
    corpus = Corpus(job.store.open("corpus/tiny"))
    with job.store.write("features", "tiny", settings={}, inputs={"corpus": corpus.artifact}) as writer:
        writer.write_json(INFO_FILE, {"extractors": {"ocr": None, "vision": None, "text": None}})
    inputs = {"corpus": corpus.artifact, "features": job.store.open("features/tiny")}
    examples = load_examples(corpus, None, "intent", "train") if "intent" in corpus.tasks else []
    with job.store.write("rulebase", "tiny", settings={}, inputs=inputs) as writer:
        if not examples:
            RuleBase(()).save(writer)
            return
        mined = mine_task(in_order(examples), job.config.intent, 0)
        join([mined]).save(writer)
        save_firings(writer, {"intent": mined.firings}, {"intent": len(examples)})


def read(artifact: Artifact, name: str) -> str:
    return artifact.read_bytes(name).decode()


def test_a_model_is_fitted_reported_and_then_skipped(tmp_path: Path):
    job = context(tmp_path)
    prepare(job, dialogues())
    gate = fit_intent.run(job)
    report = evaluate.run(job)
    metrics = json.loads(read(report, "metrics.json"))
    assert metrics["tasks"]["intent"]["examples"] == 6
    assert metrics["overall"]["classifier"]["value"] == pytest.approx(1.0)
    assert set(metrics["made_from"]) == {"gate", "corpus", "features", "rulebase", "classifier"}
    assert "退款" in read(report, "report.html")
    assert fit_intent.run(job).manifest == gate.manifest
    assert evaluate.run(job).manifest == report.manifest


def test_no_test_dialogue_reaches_what_was_fitted(tmp_path: Path):
    """Other test dialogues: the very same classifier and gate."""
    rows = dialogues()
    changed = [
        d if d.split == "train" else Dialogue(d.id, d.source, d.split, (Turn("user", "zzz"),), d.labels) for d in rows
    ]
    fitted = []
    for folder, some in (("one", rows), ("two", changed)):
        job = context(tmp_path / folder)
        prepare(job, some)
        fit_intent.run(job)
        fitted.append([job.store.open(f"{kind}/tiny").manifest.digest for kind in ("classifier", "gate")])
    assert fitted[0] == fitted[1]


def test_private_dialogues_stay_out_of_the_report_unless_asked(tmp_path: Path):
    job = context(tmp_path)
    prepare(job, dialogues())
    fit_intent.run(job)
    assert "will it arrive here 2" not in read(evaluate.run(job), "report.html")
    assert "will it arrive here 2" in read(evaluate.run(context(tmp_path, show_dialogues="always")), "report.html")


@pytest.mark.parametrize(("labelled", "tasks"), [(False, None), (False, {})])
def test_a_corpus_without_labels_is_refused_with_the_way_out(tmp_path: Path, labelled: bool, tasks: dict | None):  # noqa: FBT001
    job = context(tmp_path)
    prepare(job, dialogues(labelled=labelled), tasks)
    with pytest.raises(CorpusError, match="Label some dialogues"):
        fit_intent.run(job)
    with pytest.raises(ArtifactError, match="mmd pipeline"):
        evaluate.run(job)


def test_a_corpus_without_test_examples_cannot_be_reported(tmp_path: Path):
    job = context(tmp_path)
    prepare(job, dialogues(test=False))
    fit_intent.run(job)
    with pytest.raises(CorpusError, match="test split has no labelled example"):
        evaluate.run(job)
    assert not job.store.find("report")
