"""From settings to a reader."""

from pathlib import Path
from typing import get_args

import pytest

from mmd.corpora.base import CorpusReader
from mmd.corpora.registry import FOLDER_READERS, build_reader
from mmd.corpora.settings import CorpusSettings, DataSettings, ReaderName
from mmd.errors import ConfigError, CorpusError


def test_every_reader_that_settings_can_name_exists() -> None:
    assert {"shop", *FOLDER_READERS} == set(get_args(ReaderName))


@pytest.mark.parametrize("name", sorted(FOLDER_READERS))
def test_each_name_gives_its_reader_on_the_folder_of_the_settings(tmp_path: Path, name: ReaderName) -> None:
    reader = build_reader(DataSettings(corpus=CorpusSettings(name="mine", reader=name, path=str(tmp_path))), seed=0)
    assert isinstance(reader, CorpusReader)
    assert (reader.name, reader.root) == (name, str(tmp_path))
    with pytest.raises(CorpusError, match=r"[Ee]xpect"):
        reader.plan()


@pytest.mark.parametrize(
    ("name", "way_out"), [("taobao", "--corpus taobao=PATH"), ("mine", "--corpus mine:taobao=PATH")]
)
def test_a_missing_path_is_refused_with_the_option_that_gives_it(name: str, way_out: str) -> None:
    with pytest.raises(ConfigError, match=way_out):
        build_reader(DataSettings(corpus=CorpusSettings(name=name, reader="taobao")), seed=0)


def test_the_simulator_needs_no_path() -> None:
    assert build_reader(DataSettings(), seed=3).name == "shop"
