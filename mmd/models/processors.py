"""Processors of vision-language models, for pictures only.

Processors of Qwen2-VL and its kin also want a video processor, which needs torchvision. mmd shows no videos, so that
they are loaded here without one; pictures go through transformers' PIL image processors where torchvision is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mmd.errors import ModelError


def load_processor(place: str, model_type: str, options: Mapping[str, Any]) -> Any:  # noqa: ANN401 (duck-typed library object)
    """Load the processor of a folder or hub id; the tokenizer is its ``tokenizer``.

    Args:
        place: folder or hub id.
        model_type: architecture, as ``config.json`` names it.
        options: for ``from_pretrained``.

    Raises:
        ModelError: transformers has no processor for this architecture.
        OSError, ValueError, KeyError, TypeError, ImportError: as transformers raises them.
    """
    return picture_processor(model_type).from_pretrained(place, **options)


@lru_cache
def picture_processor(model_type: str) -> Any:  # noqa: ANN401 (a class of transformers)
    """Return the processor class of an architecture, changed to take no video processor if it wants one."""
    from transformers.models.auto import processing_auto

    names_by_type: Any = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]  # model type → class name or names
    known: Any = names_by_type.get(model_type)
    names = (known,) if isinstance(known, str) else tuple(known or ())
    base: Any = processing_auto.processor_class_from_name(names[0]) if names else None
    if base is None:
        raise ModelError(f"architecture {model_type!r}: transformers has no processor for its pictures.")
    if "video_processor" not in base.get_attributes():
        return base

    def get_attributes(_cls: Any) -> list[str]:  # noqa: ANN401 (a class of transformers)
        return [name for name in base.get_attributes() if name != "video_processor"]

    def from_args_and_dict(cls: Any, /, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:  # noqa: ANN401 (as transformers declares it)
        values = processor_dict | {"video_processor": None}
        return super(made, cls).from_args_and_dict(args, values, **kwargs)

    # The same name: it is written into processor_config.json, where other tools look for the class.
    made: Any = type(
        base.__name__,
        (base,),
        {"get_attributes": classmethod(get_attributes), "from_args_and_dict": classmethod(from_args_and_dict)},
    )
    return made
