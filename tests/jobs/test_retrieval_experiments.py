"""Experiments on retrieval: units are trained and judged as told, and pictures are drawn from records alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.experiments import (
    SUITE,
    encoder_size,
    pool_size,
    rerank_effect,
    retrieval_methods,
    retrievers,
    text_fraction,
)
from jobs.experiments.retrievers import BASELINES, Unit, UnitTrainer, with_settings
from mmd.artifacts import ArtifactStore
from mmd.config import build_config
from mmd.errors import ConfigError
from mmd.retrieval.settings import RetrievalSettings

SMALL = {
    "towers": {"text": "tiny-bert", "dim": 16, "hidden": 16},
    "training": {"epochs": 1.0, "batch": 16},
    "pools": {"size": 4},
    "rerank": {"depth": 4, "epochs": 1.0, "samples": 8},
}


@pytest.fixture(scope="module")
def trainer(tiny_store: Path) -> UnitTrainer:
    config = {
        "store": str(tiny_store),
        "data": {"corpus": {"name": "tiny"}},
        "features": {"ocr": "none", "vision": "descriptor", "text": "none"},
        "retrieval": SMALL,
        "evaluation": {"bootstrap_resamples": 10},
    }
    store = ArtifactStore(str(tiny_store))
    refs = {kind: store.open(f"{kind}/tiny").ref for kind in ("corpus", "features")}  # type: ignore[misc]
    return UnitTrainer(build_config(config).model_dump(mode="json"), refs, "test")


@pytest.fixture(scope="module")
def outcomes(trainer: UnitTrainer) -> list[dict[str, Any]]:
    units = [Unit(BASELINES, 0, {}), Unit("sdr", 0, {"method": "sdr"}), Unit("mdr", 0, {"method": "mdr"}, rerank=True)]
    return json.loads(json.dumps([trainer.run(unit) for unit in units]))


@pytest.mark.slow
def test_a_unit_is_trained_with_its_settings_and_judged_in_all_pools(outcomes: list[dict[str, Any]]):
    baselines, sdr, mdr = outcomes
    assert set(baselines["systems"]) == {"BM25", "BM25, last turn", "tiny-bert", "tiny-bert, last turn"}
    assert list(sdr["systems"]) == ["sdr"]
    assert "intent_head" in sdr["parameters"]
    assert "intent_head" not in mdr["parameters"]
    assert sdr["samples"] == mdr["samples"] == baselines["samples"]
    pools = mdr["systems"]["mdr"]["recall"]
    assert set(pools) == {f"{pool}{said}" for pool in ("union", "half", "corpus") for said in ("", ", oracle")}
    two_step = sdr["systems"]["sdr"]["recall"]
    assert two_step["union"]["multimodal"]["R@1"] <= two_step["union, oracle"]["multimodal"]["R@1"]


@pytest.mark.slow
def test_the_re_ranker_is_judged_beside_its_retriever(outcomes: list[dict[str, Any]]):
    told = outcomes[2]["rerank"]["judged"]
    assert told["within"] >= max(told["before"], told["after"])


@pytest.mark.slow
def test_pictures_are_drawn_from_records(
    outcomes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def answer(_: Any, units: list[Unit], *__: Any) -> list[dict[str, Any]]:
        trained = {"sdr": outcomes[1] | {"rerank": outcomes[2]["rerank"]}}
        return [
            outcomes[0] if u.name == BASELINES else {**trained.get(u.name, outcomes[2]), "name": u.name} for u in units
        ]

    monkeypatch.setattr(retrievers, "run_units", answer)
    monkeypatch.setattr(retrievers, "judged_on", lambda _: "test")
    monkeypatch.setattr(
        retrievers,
        "config_of",
        lambda *_: {"corpus": "tiny", "retrieval": RetrievalSettings().model_dump(mode="json")},
    )
    options: dict[str, Any] = {"seeds": 2, "corpus": "tiny", "judge": "auto", "fractions": [0.25, 0.5]}
    options |= {"methods": ["sdr", "mdr"], "encoders": ["features", "tiny-bert"]}
    for study in (retrieval_methods, text_fraction, pool_size, encoder_size, rerank_effect):
        record = json.loads(json.dumps(study.run(options)))
        study.plot(record, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_settings_of_a_unit_are_checked():
    changed = with_settings(RetrievalSettings(), {"training.text_fraction": 0.5, "method": "dr"})
    assert (changed.training.text_fraction, changed.method) == (0.5, "dr")
    with pytest.raises(ConfigError, match="no_such"):
        with_settings(RetrievalSettings(), {"training.no_such": 1})


def test_test_samples_of_third_party_data_judge_only_when_asked_to(tiny_store: Path):
    options = {"corpus": "tiny:shop", "judge": "auto", "overrides": [f"store={tiny_store}"]}
    assert retrievers.judged_on(options) == "test"  # the simulated shop
    with pytest.raises(ConfigError):
        SUITE.load("no_such_experiment")
    assert retrievers.judged_on(options | {"judge": "validation"}) == "validation"
