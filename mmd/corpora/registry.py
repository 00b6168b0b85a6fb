"""The one place that knows which reader a name stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from mmd.corpora.base import CorpusReader
from mmd.corpora.chat import ChatReader
from mmd.corpora.mmdial import MmdialReader
from mmd.corpora.mmdialog import MmdialogReader
from mmd.corpora.photochat import PhotochatReader
from mmd.corpora.redial import RedialReader
from mmd.corpora.settings import DataSettings
from mmd.corpora.taobao import TaobaoReader
from mmd.errors import ConfigError

FOLDER_READERS: dict[str, Callable[[str], CorpusReader]] = {
    "taobao": TaobaoReader,
    "redial": RedialReader,
    "photochat": PhotochatReader,
    "mmdial": MmdialReader,
    "mmdialog": MmdialogReader,
    "chat": ChatReader,
}


def build_reader(data: DataSettings, seed: int) -> CorpusReader:
    """Return the reader that the settings name.

    Args:
        data: corpus, limits and simulator settings.
        seed: of the simulated corpus; readers of files do not draw.

    Raises:
        ConfigError: the reader needs a folder and none is set.
    """
    corpus = data.corpus
    if corpus.reader == "shop":
        from mmd.corpora.shop import ShopReader  # noqa: PLC0415 (the simulator draws: heavier than any reader)

        return cast("CorpusReader", ShopReader(data.shop, seed))
    if not corpus.path:
        raise ConfigError(
            f"data.corpus.path: not set, and the {corpus.reader} reader needs the folder of its files. "
            f"Give it with --corpus {corpus.name}{'' if corpus.name == corpus.reader else ':' + corpus.reader}=PATH."
        )
    return FOLDER_READERS[corpus.reader](corpus.path)
