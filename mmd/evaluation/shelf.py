"""Text encoders as they come off the shelf: nothing trained, mean of a model's states or featurize's own vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmd.features.extract import build_extractors
from mmd.features.settings import FeatureSettings
from mmd.models.settings import ModelSettings
from mmd.retrieval.settings import TowerSettings

Encode = Callable[[list[str]], NDArray[np.floating]]
AUTO, NONE, FEATURES = "auto", "none", "features"


def shelf_encoders(
    wanted: str, towers: TowerSettings, features: FeatureSettings, models: ModelSettings
) -> dict[str, Encode]:
    """Return name → encoder that a retriever is compared with; none where there is none.

    Args:
        wanted: ``auto`` (the one that the towers' texts start from), ``none``, ``features``, or a model's name.
        towers: of the retriever.
        features: extractors of featurize.
        models: where models come from.

    Raises:
        ModelError: a model that is named is not here.
    """
    name = towers.text if wanted == AUTO else wanted
    if name == NONE:
        return {}
    if name != FEATURES:
        return {name.rpartition("/")[2]: model_encoder(name, towers, models)}
    found = build_extractors(features).text
    return {found.name.rpartition("-")[0] or found.name: found.encode} if found else {}


def model_encoder(name: str, towers: TowerSettings, models: ModelSettings) -> Encode:
    """Return a model's pooled states; of a text beyond ``context_tokens`` tokens its end is read.

    Raises:
        ModelError: the model is not here.
    """
    import torch  # noqa: PLC0415 (slow to import)

    from mmd.models.devices import choose_device, choose_dtype  # noqa: PLC0415 (with torch)
    from mmd.retrieval.bases import load_text, model_folder  # noqa: PLC0415 (with torch)
    from mmd.retrieval.encode import in_batches  # noqa: PLC0415 (with torch)
    from mmd.retrieval.inputs import TextBatch  # noqa: PLC0415 (with torch)
    from mmd.retrieval.tokens import load_tokenizer  # noqa: PLC0415 (with torch)
    from mmd.retrieval.towers import TransformerText  # noqa: PLC0415 (with torch)

    folder, device = model_folder(name, models), choose_device(models)
    encoder = TransformerText(load_text(folder), towers.pooling).eval().to(device)
    encoder.dtype = choose_dtype(models, device)
    tokenizer = load_tokenizer(folder)

    def encode(texts: list[str]) -> NDArray[np.floating]:
        return in_batches(
            texts,
            len,
            lambda some: TextBatch(tokens=tokenizer(some, towers.context_tokens, "left")).to(device),
            lambda inputs: torch.nn.functional.normalize(encoder(inputs), dim=1),
        )

    return encode
