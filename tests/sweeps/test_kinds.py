"""Search spaces: closed lists of settings, checked by the settings' own models; the shipped examples are valid."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from mmd.config import AppConfig, describe_settings, load_config
from mmd.errors import ConfigError
from mmd.sweeps.kinds import KINDS, check_space, fields_of, kind_named, overrides_of, read_space, space_of
from mmd.sweeps.types import SweepName

EXAMPLES = Path(__file__).resolve().parents[2] / "cluster" / "sweeps"


@pytest.mark.parametrize("name", get_args(SweepName))
def test_every_field_is_a_setting_with_its_default_type_and_description(name: SweepName):
    described = {key: what for key, _, what in describe_settings()}
    defaults = AppConfig().model_dump(mode="json")
    fields = fields_of(KINDS[name])
    assert len({field.key for field in fields}) == len(fields) >= 5
    for field in fields:
        assert field.description == described[field.key]
        value: Any = defaults
        for part in field.key.split("."):
            value = value[part]
        assert field.default == value
        assert field.schema["type"] in {"integer", "number", "string", "array"}
        check_space(KINDS[name], {field.key: field.default})


def test_no_space_reaches_stores_paths_models_or_the_service():
    for kind in KINDS.values():
        for field in fields_of(kind):
            assert field.key.split(".")[0] in {"intent", "recommend", "retrieval", "seed"}
            assert not any(word in field.key for word in ("path", "store", "model", "uri", "url", "cache"))


@pytest.mark.parametrize("name", get_args(SweepName))
def test_the_shipped_example_is_a_space_of_its_sweep(name: SweepName):
    kind = KINDS[name]
    values = read_space(EXAMPLES / f"{name}.yaml", kind)
    assert values
    assert check_space(kind, values) == load_config(
        EXAMPLES.parents[1] / "ray_config.yaml", overrides=overrides_of(values)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"store": "s3://mine"}, "no setting that sweep conkd searches"),
        ({"recommend.sweep": {}}, "no setting that sweep conkd searches"),
        ({"recommend.sweep.gamas": [0.5]}, "Did you mean 'recommend.sweep.gammas'"),
        ({"models.mllm": "x"}, "no setting"),
        ({"__class__": 1}, "no setting"),
        ({"recommend.sweep.gammas": ["0.5"]}, "recommend.sweep.gammas.0"),
        ({"recommend.sweep.gammas": []}, "recommend.sweep.gammas"),
        ({"recommend.sweep.gates": ["soft; rm -rf /"]}, "recommend.sweep.gates.0"),
        ({"recommend.sweep.keep": 1}, "recommend.sweep.keep"),
        ({"recommend.sweep.keep": True}, "recommend.sweep.keep"),
        ({"recommend.sweep.gammas": [0.5] * 65}, "at most 64"),
        ({"recommend.sweep.gammas": [0.5] * 64, "recommend.sweep.etas": [0.5] * 64}, "4,096 points"),
        ({"recommend.sweep.gammas": [[0.5]]}, "a list in a list"),
        ({"recommend.sweep.gammas": [float("nan")]}, "not a number"),
        ({"recommend.sweep.gates": ["x" * 101]}, "more than 100 characters"),
        ({"recommend.sweep.gammas": {"a": 1}}, "a mapping"),
    ],
)
def test_a_space_with_something_else_in_it_is_refused_with_the_reason(values: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        check_space(KINDS["conkd"], values)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("rules", {"intent.search.seeds": 10**9}, "1,000,000,000 points"),
        ("rules", {"intent.search.seeds": 100, "intent.folds": 50}, "5,000 points"),
        ("rules", {"intent.search.seeds": 101}, "less than or equal to 100"),
        ("rules", {"intent.folds": 51}, "less than or equal to 50"),
        ("text_fraction", {"retrieval.sweep.seeds": 101}, "less than or equal to 100"),
        ("text_fraction", {"retrieval.sweep.seeds": 50, "retrieval.sweep.fractions": [0.5] * 64}, "3,200 points"),
    ],
)
def test_repeats_count_as_points(name: SweepName, values: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        check_space(KINDS[name], values)


def test_a_space_is_laid_over_the_settings_and_told_back():
    below = AppConfig(seed=7)
    config = check_space(KINDS["conkd"], {"recommend.sweep.gammas": [0.5]}, below)
    assert config.seed == 7
    assert config.recommend.sweep.gammas == (0.5,)
    told = space_of(KINDS["conkd"], config)
    assert told["recommend.sweep.gammas"] == [0.5]
    assert told["seed"] == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recommend: {sweep: {gammas: [0.5]}}\nstore: elsewhere\n", "store: no setting"),
        ("recommend: {backbone: {kind: lm}}\n", "recommend.backbone: no setting"),
        ("recommend: {sweep: 3}\n", "recommend.sweep: no setting"),
        ("[1]\n", "needs a mapping"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_a_file_with_something_else_in_it_is_refused_by_name(tmp_path: Path, text: str, message: str):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        read_space(path, KINDS["conkd"])
    assert str(path) in str(refused.value)


def test_an_unknown_sweep_is_told_which_there_are():
    with pytest.raises(ConfigError, match="rules, gates, conkd, text_fraction"):
        kind_named("../rules")
