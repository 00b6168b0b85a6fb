"""Settings: strict, layered, and helpful when wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mmd.config import AppConfig, build_config, describe_settings, load_config
from mmd.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def config_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "ray_config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_profile_lies_over_the_file_and_overrides_over_the_profile(tmp_path: Path):
    path = config_file(tmp_path, "seed: 1\nstore: a\nprofiles: {gpu: {seed: 2, store: b}}\n")
    assert load_config(path).seed == 1
    config = load_config(path, profile="gpu", overrides=["store=c"])
    assert (config.seed, config.store) == (2, "c")


def test_an_unknown_key_names_its_path_the_known_keys_and_the_nearest():
    with pytest.raises(ConfigError, match=r"intent\.search\.rollout: unknown.*known here: .*Did you mean 'rollouts'"):
        build_config({"intent": {"search": {"rollout": 3}}})


def test_an_unknown_key_inside_a_profile_is_found_without_using_the_profile(tmp_path: Path):
    path = config_file(tmp_path, "profiles: {gpu: {sed: 2}}\n")
    with pytest.raises(ConfigError, match=r"profiles\.gpu\.sed: unknown.*'seed'"):
        load_config(path)


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"seed": "3"}, 'seed: .*valid integer.*given: "3"'),
        ({"seed": -1}, "seed: .*greater than or equal to 0"),
        ({"data": {"corpus": {"reader": "tabao"}}}, r"data\.corpus\.reader: .*'shop', 'taobao'"),
        ({"data": {"shop": {"languages": ["fr"]}}}, r"data\.shop\.languages\.0: .*'en' or 'zh'"),
        ({"data": {"corpus": 3}}, r"data\.corpus: "),
        ({"serve": {"max_body_mb": True}}, r"serve\.max_body_mb: .*valid number"),
    ],
)
def test_an_ill_typed_value_names_its_path_and_what_is_allowed(values: dict[str, object], where: str):
    with pytest.raises(ConfigError, match=where):
        build_config(values)


def test_every_mistake_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        build_config({"seed": "x", "intent": {"folds": 1}})
    assert "seed" in str(caught.value)
    assert "intent.folds" in str(caught.value)


@pytest.mark.parametrize("bad", ["intent.folds", "=3", "intent..folds=3", "a=[1"])
def test_a_malformed_override_is_refused(bad: str):
    with pytest.raises(ConfigError, match="--set"):
        load_config(ROOT / "ray_config.yaml", overrides=[bad])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("intent.search.rollout=3", r"^--set intent\.search\.rollout=3: intent\.search\.rollout: unknown.*'rollouts'"),
        ("seed=-1", r"^--set seed=-1: seed: .*greater than or equal to 0"),
        ("seed.x=1", r"^--set seed\.x=1: seed: "),
    ],
)
def test_a_mistake_in_an_override_is_told_of_the_override_and_not_of_the_file(override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(ROOT / "ray_config.yaml", overrides=["seed=2", override])


def test_a_mistake_in_the_file_is_told_of_the_file(tmp_path: Path):
    path = config_file(tmp_path, "sed: 2\n")
    with pytest.raises(ConfigError, match=r"ray_config\.yaml: sed: unknown.*'seed'"):
        load_config(path, overrides=["seed=2"])


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'laptpo': unknown; .* gpu, laptop.*Did you mean 'laptop'"):
        load_config(ROOT / "ray_config.yaml", profile="laptpo")


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "3\n"])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str):
    with pytest.raises(ConfigError, match=r"YAML|mapping"):
        load_config(config_file(tmp_path, text))


def test_a_missing_file_and_invalid_utf8_are_told_plainly(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such settings file"):
        load_config(tmp_path / "nowhere.yaml")
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"cannot be read|not valid YAML"):
        load_config(path)


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        AppConfig().seed = 3  # type: ignore[misc]


def test_the_shipped_file_shows_every_setting_with_its_default():
    """Profiles may differ; the file's own sections are the documentation of the defaults."""
    raw = yaml.safe_load((ROOT / "ray_config.yaml").read_text(encoding="utf-8"))
    shown = {key for key in _leaves(raw) if not key.startswith("profiles.") and key != "profile"}
    expected = {key for key, _, _ in describe_settings()}
    assert shown == expected
    del raw["profiles"], raw["profile"]
    assert build_config(raw) == AppConfig()


def test_every_profile_of_the_shipped_file_is_valid():
    for profile in ("laptop", "mllm", "gpu"):
        assert isinstance(load_config(ROOT / "ray_config.yaml", profile=profile), AppConfig)


def test_every_setting_has_a_description():
    assert [key for key, _, text in describe_settings() if not text] == []


def _leaves(value: object, prefix: str = "") -> set[str]:
    if not isinstance(value, dict) or not value:
        return {prefix}
    return set().union(*(_leaves(v, f"{prefix}.{k}" if prefix else k) for k, v in value.items()))


@pytest.mark.parametrize("text", ["profiles: [1]\n", "profiles: 3\n", "profiles: {laptop: 3}\n"])
def test_profiles_that_are_no_mapping_are_refused(tmp_path: Path, text: str):
    with pytest.raises(ConfigError, match="profiles: needs a mapping"):
        load_config(config_file(tmp_path, text))


def test_a_value_nested_beyond_reason_is_refused():
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(ROOT / "ray_config.yaml", overrides=["seed=" + "[" * 5000])


@pytest.mark.parametrize(("text", "value"), [("2e-4", 2e-4), ("1E3", 1000.0), ("-5e+2", -500.0), ("2.0e-4", 2e-4)])
def test_a_number_with_an_exponent_needs_no_point(tmp_path: Path, text: str, value: float):
    path = tmp_path / "c.yaml"
    path.write_text(f"recommend: {{distill: {{eta: {text}}}}}\n", encoding="utf-8")
    assert load_config(path).recommend.distill.eta == value
    assert (
        load_config(ROOT / "ray_config.yaml", overrides=[f"recommend.distill.eta={text}"]).recommend.distill.eta
        == value
    )


def test_words_that_only_look_like_exponents_stay_words(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("store: 1e5f\n", encoding="utf-8")
    assert load_config(path).store == "1e5f"
