"""finetune_mllm with method frozen: the job is the plain call, whoever reads the samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.finetune_mllm import finetune_settings, run
from jobs.glue.entry import JobContext
from jobs.glue.frozen import SpreadStates, open_states, read_originals
from mmd.artifacts import ArtifactStore
from mmd.config import build_config
from mmd.intent.frozen import FrozenTask, dialogue_pieces, fit_frozen, read_samples
from mmd.intent.mllm import load_held_out, load_mllm_classifiers
from mmd.intent.samples import FOLDER, ORIGINAL, SAMPLES, Sample, Samples, sample_to_row
from mmd.intent.settings import FrozenSettings
from mmd.intent.types import IntentExample
from mmd.models.hidden import SpanStates
from mmd.models.mllm import load_mllm
from mmd.schema import Turn

NAME = "words"
WORDS = {"refund": "i want my money back", "season": "can i wear this in summer", "which size fits": "170 cm tall"}
LABELS = tuple(WORDS)
BASE = "tiny-llama"


def make_samples(n: int = 18) -> list[Sample]:
    """Originals, every third with a copy that must not be read."""
    out = []
    for i in range(n):
        label = LABELS[i % 3]
        example = IntentExample(f"d{i:02d}", "intent", label, (Turn("user", f"{WORDS[label]} {'so ' * (i % 4)}"),))
        hint = f"{label} (5 of 6)" if i % 2 else ""
        out.append(Sample(f"d{i:02d}", f"d{i:02d}", ORIGINAL, i // 3 % 3, hint, example))
        if i % 3 == 0:
            out.append(Sample(f"d{i:02d}-1", f"d{i:02d}", "frame", i // 3 % 3, "", example))
    return out


@pytest.fixture
def context(tmp_path: Path) -> JobContext:
    store = ArtifactStore(str(tmp_path))
    with store.write("corpus", NAME, settings={}) as writer:
        writer.write_json("tasks.json", {"intent": list(LABELS)})
    table = pa.Table.from_pylist([sample_to_row(sample) for sample in make_samples()], schema=SAMPLES)
    with store.write("samples", NAME, settings={}, inputs={"corpus": store.open(f"corpus/{NAME}")}) as writer:
        writer.write_table(FOLDER, table)
    return JobContext(
        build_config(
            {
                "store": str(tmp_path),
                "data": {"corpus": {"name": NAME}},
                "models": {"mllm": BASE},
                "intent": {"finetune": {"method": "frozen", "threads": 1}},
            }
        )
    )


def test_the_job_writes_what_the_plain_call_gives(context: JobContext):
    artifact = run(context)
    task = FrozenTask("intent", LABELS, FrozenSettings())
    samples = [sample for sample in make_samples() if sample.made_by == ORIGINAL]
    states = SpanStates(load_mllm(BASE), task.settings.layer)
    fitted = fit_frozen(samples, read_samples(states.means, states.dim, samples, task), task)
    held_out = load_held_out(artifact, "intent")
    assert held_out is not None
    assert held_out.plain.keys() == {sample.id for sample in samples}
    for key, score in fitted.held_out.items():
        np.testing.assert_allclose(held_out.plain[key].values, np.exp(score.plain), atol=1e-6)
        np.testing.assert_allclose(held_out.hinted[key].values, np.exp(score.hinted), atol=1e-6)
    answers = load_mllm_classifiers(artifact)["intent"].predict([sample.example for sample in samples])
    assert [answer.best[0] for answer in answers] == [sample.example.label for sample in samples]
    assert run(context).ref == artifact.ref


def test_originals_are_read_without_their_pictures_bytes(context: JobContext):
    found = read_originals(Samples(context.store.open(f"samples/{NAME}")))
    assert [sample.id for sample in found] == [s.id for s in make_samples() if s.made_by == ORIGINAL]
    assert not any(image.data for sample in found for image in sample.example.images)


def test_other_methods_are_named_by_what_they_depend_on(context: JobContext):
    assert finetune_settings(context)["finetune"].keys() == {"method", "frozen"}
    config = context.config.model_dump() | {"profile": None}
    config["intent"]["finetune"]["method"] = "lora"
    config.pop("profile")
    assert "frozen" not in finetune_settings(JobContext(build_config(config)))["finetune"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_actors_read_what_the_driver_reads(context: JobContext):
    texts = [dialogue_pieces(s.example, FrozenSettings(), labels=LABELS, hint=s.hint) for s in make_samples(70)]
    with open_states(context, BASE, 100) as (own, layer, dim), open_states(context, BASE, 100, 0) as spread:
        assert isinstance(spread[0], SpreadStates)
        assert spread[1:] == (layer, dim)
        for here, there in zip(own(texts), spread[0](texts), strict=True):
            assert here.keys() == there.keys()
            for span, mean in here.items():
                np.testing.assert_allclose(mean, there[span], atol=1e-5)
