"""Tiny text and vision encoders, as :mod:`mmd.models.tiny` builds tiny language models: random weights, real shape.

``tiny-bert`` is a BERT of two layers that reads any script (byte-level BPE of shop talk); ``tiny-vit`` is a ViT of two
layers over 64 x 64 px, squeezed whole, in 16-px patches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmd.models.tiny import TinyModel, save_random, small_tokenizer

_PAD, _CLS, _SEP = "[PAD]", "[CLS]", "[SEP]"
_SIDE_PX, _PATCH_PX = 64, 16
_SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def _write_bert(folder: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModel, BertConfig

    tokenizer = small_tokenizer((_PAD, _SEP, _CLS), pad=_PAD, end=_SEP)
    cls, sep = (tokenizer.convert_tokens_to_ids(token) for token in (_CLS, _SEP))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{_CLS} $A {_SEP}", pair=f"{_CLS} $A {_SEP} $B:1 {_SEP}:1", special_tokens=[(_CLS, cls), (_SEP, sep)]
    )
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=512, **_SHAPE
    )
    save_random(folder, config, AutoModel)


def _write_vit(folder: Path) -> None:
    from transformers import AutoModel, ViTConfig
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    size = {"height": _SIDE_PX, "width": _SIDE_PX}
    ViTImageProcessorPil(size=size).save_pretrained(folder)
    save_random(folder, ViTConfig(image_size=_SIDE_PX, patch_size=_PATCH_PX, **_SHAPE), AutoModel)


ENCODERS: dict[str, TinyModel] = {
    model.name: model
    for model in (
        TinyModel("tiny-bert", sees_pictures=False, write=_write_bert, kind="sentence"),
        TinyModel("tiny-vit", sees_pictures=True, write=_write_vit, kind="vision"),
    )
}
"""The tiny encoders by name."""
