"""A fine-tuning step of a vision-language model: tokens a second, model FLOPs utilisation, peak memory.

The model is built from a configuration with random weights, since speed does not depend on what they are: on a GPU
Qwen2.5-VL of 7B size, on a CPU a small one. The engine is the one that trains (DeepSpeed, LoRA or full); a sample is a
picture and words. Utilisation is the step's floating-point operations against the rate that the same device reaches in
a large matrix product of the same arithmetic, measured in the same run.

Operations are counted as 2 a weight and token for the forward pass, 2 for the gradient of activations, and 2 more for
the gradient of weights where these are trained (LoRA trains next to none); attention's products over the sequence are
added, embeddings and recomputation are not (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B).

    python -m jobs.bench finetune
    python -m jobs.bench finetune --size 7b --batch 4 --picture-px 448 --recompute
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import time
from collections.abc import Mapping
from typing import Any

from jobs.glue.records import spread
from mmd.intent.engines import DeepSpeedEngine, parts_of, recompute_activations
from mmd.intent.settings import DeepSpeedSettings, LoraSettings
from mmd.intent.training_plan import Method, Recipe
from mmd.models.weights import trained

_PATCH, _MERGE, _IMAGE_TOKEN, _VISION_START, _VISION_END = 14, 2, 10, 11, 12

SIZES: dict[str, dict[str, Any]] = {
    # Qwen2.5-VL-7B-Instruct's published shapes.
    "7b": {
        "text": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        "vision": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
        },
        "sections": [16, 24, 24],
    },
    "small": {
        "text": {
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "vocab_size": 8192,
        },
        "vision": {"depth": 4, "hidden_size": 256, "intermediate_size": 512, "num_heads": 4, "out_hidden_size": 512},
        "sections": [8, 12, 12],
    },
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add size, method, stage, lengths and repeats."""
    parser.add_argument("--size", choices=("auto", *SIZES), default="auto", help="auto: 7b on a GPU, else small")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    parser.add_argument("--stage", type=int, choices=(0, 2, 3), default=0, help="ZeRO stage")
    parser.add_argument("--batch", type=int, default=4, help="samples of a micro-batch")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--picture-px", type=int, default=448, help="edge of a sample's picture, a multiple of 28")
    parser.add_argument("--words", type=int, default=256, help="tokens of a sample besides the picture's")
    parser.add_argument("--answer", type=int, default=8, help="of these, tokens of the answer")
    parser.add_argument("--recompute", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the clock starts")
    parser.add_argument("--repeats", type=int, default=8, help="steps timed")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Time optimizer steps of one worker."""
    import torch

    on_gpu = torch.cuda.is_available()
    size = options["size"] if options["size"] != "auto" else "7b" if on_gpu else "small"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    _one_process_group(on_gpu=on_gpu)
    method: Method = options["method"]
    mllm = build(size, dtype, method, options["rank"], recompute=options["recompute"])
    recipe = Recipe(method, 1e-4, 0.0, 0.01, 1.0, 1.0, options["batch"], options["accumulate"], workers=1)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    counts = operations(mllm, options)
    engine = DeepSpeedEngine(mllm, recipe, DeepSpeedSettings(stage=options["stage"]))
    batch = make_batch(options, SIZES[size]["text"]["vocab_size"])
    seconds = []
    for _ in range(options["warmup"] + options["repeats"]):
        _wait(on_gpu=on_gpu)
        started = time.perf_counter()
        engine.step(parts_of(mllm, [(batch, 1 / recipe.accumulate)] * recipe.accumulate), 1e-4)
        _wait(on_gpu=on_gpu)
        seconds.append(time.perf_counter() - started)
    timed = seconds[options["warmup"] :]
    matmul = matmul_rate(dtype, 8192 if on_gpu else 1024)
    samples = recipe.batch * recipe.accumulate
    rates = [samples * counts["flops_a_sample"] / s for s in timed]
    return {
        "config": dict(options) | {"size": size, "dtype": str(dtype).removeprefix("torch.")},
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "warmup": options["warmup"],
        "repeats": options["repeats"],
        "model": counts,
        "step_s": spread(timed),
        "tokens_per_s": spread([samples * counts["tokens_a_sample"] / s for s in timed]),
        "samples_per_s": spread([samples / s for s in timed]),
        "tflops": spread([rate / 1e12 for rate in rates]),
        "matmul_tflops": matmul / 1e12,
        "model_flops_utilisation": spread([rate / matmul for rate in rates]),
        "target_utilisation": 0.45 if on_gpu else None,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 2**30
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def build(size: str, dtype: Any, method: Method, rank: int, *, recompute: bool) -> Any:  # noqa: ANN401 (torch's dtype, an Mllm)
    """Build a Qwen2.5-VL with random weights on the device, ready to be trained."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from mmd.models.lora import add_lora
    from mmd.models.mllm import Mllm

    shapes = SIZES[size]
    config = Qwen2_5_VLConfig(
        text_config={
            **shapes["text"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": shapes["sections"]},
        },
        vision_config=shapes["vision"],
        image_token_id=_IMAGE_TOKEN,
        vision_start_token_id=_VISION_START,
        vision_end_token_id=_VISION_END,
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    model.train(method == "full").requires_grad_(method == "full")
    mllm = Mllm(f"qwen2.5-vl-{size}", model, None)  # type: ignore[arg-type]  # batches are made here, without tokenizer
    if method == "lora":
        add_lora(mllm, LoraSettings(rank=rank), 0)
    if recompute:
        recompute_activations(mllm)
    return mllm


def make_batch(options: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """Return a micro-batch of random pictures and words; the last words are the answer."""
    import torch

    rows, side = options["batch"], options["picture_px"] // _PATCH
    pictures = picture_tokens(options)
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(100, vocabulary, (rows, options["words"]), generator=draw)
    image = torch.full((rows, pictures), _IMAGE_TOKEN)
    start, end = torch.full((rows, 1), _VISION_START), torch.full((rows, 1), _VISION_END)
    ids = torch.cat([start, image, end, words], dim=1)
    labels = torch.full_like(ids, -100)
    labels[:, -options["answer"] :] = ids[:, -options["answer"] :]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == _IMAGE_TOKEN).to(torch.int64),
        "labels": labels,
        "pixel_values": torch.randn(rows * side * side, 3 * 2 * _PATCH * _PATCH, generator=draw),
        "image_grid_thw": torch.tensor([[1, side, side]] * rows),
    }


def picture_tokens(options: Mapping[str, Any]) -> int:
    """Return the tokens that a picture takes in the language model."""
    return int((options["picture_px"] // (_PATCH * _MERGE)) ** 2)


def operations(mllm: Any, options: Mapping[str, Any]) -> dict[str, float]:  # noqa: ANN401 (an Mllm)
    """Count weights, and floating-point operations of a sample in a step (see the module's text).

    The vision tower and its merger run forward only under LoRA: no gradient is asked of anything before them.
    """
    core = mllm.core
    text, vision = core.config.get_text_config(), core.config.vision_config
    full = options["method"] == "full"
    visual = sum(p.numel() for p in core.model.visual.parameters())
    merger = sum(p.numel() for p in core.model.visual.merger.parameters())
    layers = sum(p.numel() for n, p in core.model.language_model.layers.named_parameters() if "lora_" not in n)
    head = text.vocab_size * text.hidden_size
    patches = (options["picture_px"] // _PATCH) ** 2
    tokens = picture_tokens(options) + 2 + options["words"]
    # Scores and their use: 2 products of 2 operations over an average of half the sequence (causal).
    attention = 2 * tokens * tokens * text.hidden_size * text.num_hidden_layers
    passes = 3 if full else 2
    language = passes * (2 * layers * tokens + attention) + passes * 2 * head * options["answer"]
    # The merger works on 2 x 2 patches at a time.
    tower = (3 if full else 1) * 2 * ((visual - merger) * patches + merger * patches / _MERGE**2)
    return {
        "parameters": float(visual + layers + head * (1 if core.config.tie_word_embeddings else 2)),
        "trained_parameters": float(sum(p.numel() for p in trained(mllm.model).values())),
        "vision_depth": float(vision.depth),
        "tokens_a_sample": float(tokens),
        "flops_a_sample": float(language + tower),
    }


def matmul_rate(dtype: Any, edge: int, repeats: int = 20) -> float:  # noqa: ANN401 (torch's dtype)
    """Return the operations a second of a square matrix product on this device, the best of several."""
    import torch

    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        _wait(on_gpu=on_gpu)
        started = time.perf_counter()
        a @ b
        _wait(on_gpu=on_gpu)
        seconds.append(time.perf_counter() - started)
    return 2 * edge**3 / min(seconds)


def _wait(*, on_gpu: bool) -> None:
    import torch

    if on_gpu:
        torch.cuda.synchronize()


def _one_process_group(*, on_gpu: bool) -> None:
    from torch import distributed

    if distributed.is_initialized():
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    os.environ |= {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    distributed.init_process_group("nccl" if on_gpu else "gloo", rank=0, world_size=1)
