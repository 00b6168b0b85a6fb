"""Tiny models: real architectures with seeded random weights, built in seconds, offline, the same on every machine.

They stand where a large model would stand, in every test and in the laptop's pipeline: everything but the weights is
what a large model uses (architecture, processor, chat template). The tokenizer is a byte-level BPE, trained on texts of
the shop simulator, so that it is short for shop talk in English and Chinese and can still write any text.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmd.errors import ModelError

PREFIX = "tiny-"
_VOCABULARY = 2048
_SEED = 0
_RECIPE = 4
"""Raised with every change of what is written here. Not this file's bytes: a process may run an older text of it."""
_PAD, _START, _END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_IMAGE, _VIDEO, _VISION_START, _VISION_END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "PICTURE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


_VIT = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A tiny model's name, what it does, and how its folder is written."""

    name: str
    sees_pictures: bool
    write: Callable[[Path], None]
    kind: Literal["language", "multimodal", "sentence", "vision"] = "language"


def tiny_models() -> dict[str, TinyModel]:
    """Return every tiny model by name: those that answer, and the encoders of :mod:`mmd.models.tiny_encoders`."""
    from mmd.models.tiny_encoders import ENCODERS

    return TINY | ENCODERS


def build_tiny(name: str, cache_dir: Path) -> Path:
    """Return the folder of a tiny model, building it the first time.

    The folder's name carries a digest of the recipe's number and of the simulator's phrases: a change builds anew.

    Raises:
        ModelError: no such tiny model, or the cache cannot be written.
    """
    known = tiny_models()
    if name not in known:
        raise ModelError(f"model {name!r}: no such tiny model; there are {', '.join(known)}.")
    target = cache_dir / "tiny" / f"{name}-{_digest()}"
    if (target / "config.json").is_file():
        return target
    aside = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    from mmd.models.resolve import publish_folder

    try:
        aside.mkdir(parents=True)
        known[name].write(aside)
        publish_folder(aside, target)
    except OSError as err:
        raise ModelError(
            f"model {name!r}: cannot be built in {cache_dir} ({err}); set models.cache_dir to a writable folder."
        ) from err
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _digest() -> str:
    from mmd.corpora import shop

    sources = sorted(Path(shop.__file__).parent.rglob("*.yaml"))
    digest = hashlib.sha256(f"recipe {_RECIPE}".encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _texts() -> Iterator[str]:
    """Yield what the shop's people say, and the names of its labels; its pictures are drawn small and unused."""
    from mmd.corpora.settings import LimitSettings, ShopSettings
    from mmd.corpora.shop import ShopReader
    from mmd.corpora.validate import validate_record

    reader = ShopReader(ShopSettings(dialogues=300, items=40, test_fraction=0.01, image_side_px=32), seed=1)
    tasks = reader.tasks()
    for labels in tasks.values():
        yield from (label for label in labels for _ in range(50))
    for part in reader.plan():
        for raw in reader.read(part):
            yield from (turn.text for turn in validate_record(reader, raw, LimitSettings(), tasks).dialogue.turns)


def _tokenizer(specials: tuple[str, ...], template: str) -> Any:  # noqa: ANN401 (duck-typed library object)
    """Return the tokenizer of a model that answers: chat template, end of turn."""
    return small_tokenizer(specials, pad=_PAD, end=_END, chat_template=template)


def small_tokenizer(specials: tuple[str, ...], *, pad: str, end: str, **options: Any) -> Any:  # noqa: ANN401 (duck-typed library objects)
    """Return a byte-level BPE trained on shop talk; ``options`` go to transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        pad_token=pad,
        eos_token=end,
        additional_special_tokens=[s for s in specials if s not in (pad, end)],
        model_max_length=4096,
        **options,
    )


def save_random(folder: Path, config: Any, door: Any) -> None:  # noqa: ANN401 (duck-typed library objects)
    """Write a model with random weights, drawn from a generator of its own seed."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = door.from_config(config) if hasattr(door, "from_config") else door(config)
    model.save_pretrained(folder)


def _text_config(tokenizer: Any, **more: Any) -> dict[str, Any]:  # noqa: ANN401 (duck-typed library objects)
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": True,
    } | more


def _write_llama(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = _tokenizer((_PAD, _START, _END), _TEMPLATE)
    tokenizer.save_pretrained(folder)
    save_random(folder, LlamaConfig(**_text_config(tokenizer)), AutoModelForCausalLM)


def _write_qwen(folder: Path, generation: str) -> None:
    """Qwen2-VL or Qwen2.5-VL: pictures of about 56 x 56 px, 14-px patches, 4 x 4 patches a token.

    A picture becomes one token (two if it is long), so that the merger has weights of its own for every place in it.
    That is what lets the model learn page layouts from hundreds of pictures: with the usual 2 x 2 patches a token it
    reached .48 on unseen pictures of the shop where this one reached .85, after as many steps.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from mmd.models.processors import picture_processor

    template = _TEMPLATE.replace("PICTURE", f"{_VISION_START}{_IMAGE}{_VISION_END}")
    tokenizer = _tokenizer((_PAD, _START, _END, _VISION_START, _VISION_END, _IMAGE, _VIDEO), template)
    patch, merge = 14, 4
    area = (patch * merge) ** 2
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": area, "longest_edge": area}, patch_size=patch, merge_size=merge
    )
    picture_processor(generation)(images, tokenizer, chat_template=template).save_pretrained(folder)
    ids = {
        "image_token_id": tokenizer.convert_tokens_to_ids(_IMAGE),
        "video_token_id": tokenizer.convert_tokens_to_ids(_VIDEO),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids(_VISION_START),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids(_VISION_END),
    }
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10_000.0}
    vision: dict[str, Any] = {"depth": 2, "num_heads": 4, "patch_size": patch, "spatial_merge_size": merge}
    vision |= (
        {"embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2}
        if generation == "qwen2_vl"
        else {
            "hidden_size": 64,
            "out_hidden_size": 128,
            "intermediate_size": 128,
            "window_size": patch * merge,
            "fullatt_block_indexes": [0, 1],
        }
    )
    config = AutoConfig.for_model(
        generation,
        text_config=_text_config(tokenizer, rope_parameters=rope),
        vision_config=vision,
        tie_word_embeddings=True,
        **ids,
    )
    save_random(folder, config, AutoModelForImageTextToText)


def _write_smolvlm(folder: Path) -> None:
    """SmolVLM (Idefics3): pictures squeezed into 112 x 112 px, 14-px patches, 4 patches a token."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    from mmd.models.processors import picture_processor

    image, around, whole = "<image>", "<fake_token_around_image>", "<global-img>"
    tiles = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
    specials = (_PAD, _START, _END, "<end_of_utterance>", around, image, whole, *tiles)
    template = _TEMPLATE.replace("PICTURE", image)
    tokenizer = _tokenizer(specials, template)
    side, patch, scale = 112, 14, 2
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": side}, max_image_size={"longest_edge": side}, do_image_splitting=False
    )
    tokens = (side // patch // scale) ** 2
    picture_processor("idefics3")(images, tokenizer, image_seq_len=tokens, chat_template=template).save_pretrained(
        folder
    )
    config = Idefics3Config(
        text_config=_text_config(tokenizer, model_type="llama"),
        vision_config=_VIT | {"image_size": side, "patch_size": patch},
        scale_factor=scale,
        image_token_id=tokenizer.convert_tokens_to_ids(image),
        tie_word_embeddings=True,
    )
    save_random(folder, config, Idefics3ForConditionalGeneration)


def _write_llava(folder: Path) -> None:
    """LLaVA: pictures squeezed into 112 x 112 px, 28-px patches, a token each; its tower is CLIP's."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from mmd.models.processors import picture_processor

    side, patch = 112, 28
    template = _TEMPLATE.replace("PICTURE", _IMAGE)
    tokenizer = _tokenizer((_PAD, _START, _END, _IMAGE), template)
    images = CLIPImageProcessorPil(size={"height": side, "width": side}, do_center_crop=False)
    # The tower's class token is computed (one more), then dropped ("default").
    layout: dict[str, Any] = {"vision_feature_select_strategy": "default"}
    picture_processor("llava")(
        images,
        tokenizer,
        patch_size=patch,
        num_additional_image_tokens=1,
        chat_template=template,
        image_token=_IMAGE,
        **layout,
    ).save_pretrained(folder)
    config = LlavaConfig(
        text_config=_text_config(tokenizer, model_type="llama"),
        vision_config=_VIT | {"model_type": "clip_vision_model", "image_size": side, "patch_size": patch},
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE),
        image_seq_length=(side // patch) ** 2,
        tie_word_embeddings=True,
        **layout,
    )
    save_random(folder, config, LlavaForConditionalGeneration)


TINY: dict[str, TinyModel] = {
    model.name: model
    for model in (
        TinyModel(
            "tiny-qwen2-vl", sees_pictures=True, kind="multimodal", write=lambda folder: _write_qwen(folder, "qwen2_vl")
        ),
        TinyModel(
            "tiny-qwen2.5-vl",
            sees_pictures=True,
            kind="multimodal",
            write=lambda folder: _write_qwen(folder, "qwen2_5_vl"),
        ),
        TinyModel("tiny-smolvlm", sees_pictures=True, kind="multimodal", write=_write_smolvlm),
        TinyModel("tiny-llava", sees_pictures=True, kind="multimodal", write=_write_llava),
        TinyModel("tiny-llama", sees_pictures=False, write=_write_llama),
    )
}
"""The tiny models by name."""
