"""Tiny models, built once a test run into a cache of its own."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from mmd.models.mllm import Mllm, load_mllm
from mmd.models.prompt import Prompt
from mmd.models.settings import ModelSettings


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    """Settings with an empty cache folder of the test run."""
    return ModelSettings(cache_dir=str(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="session")
def tiny(models: ModelSettings) -> Callable[[str], Mllm]:
    """Loads a tiny model by name, once."""
    loaded: dict[str, Mllm] = {}

    def load(name: str) -> Mllm:
        if name not in loaded:
            loaded[name] = load_mllm(name, models)
        return loaded[name]

    return load


def picture(width: int, height: int, colour: str) -> bytes:
    """Return a PNG of one colour with a white square in its corner."""
    from PIL import Image

    image = Image.new("RGB", (width, height), colour)
    image.paste("white", (0, 0, width // 3, height // 3))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    """One, no and two pictures; English, Chinese; with and without an instruction."""
    return [
        Prompt("Name the intent.", ("Look: ", picture(224, 298, "red"), "what is this?")),
        Prompt("", ("这款是什么材质的？",)),
        Prompt("Name it.", (picture(224, 224, "blue"), picture(224, 198, "green"), "Which of the two would you take?")),
    ]


@pytest.fixture(scope="session")
def cache(models: ModelSettings) -> Path:
    """The cache folder of the test run."""
    return Path(models.cache_dir)
