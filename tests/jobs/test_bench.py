"""Benchmarks: what they divide by is counted as torch counts it."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.bench import finetune
from mmd.models.mllm import answer_loss
from mmd.models.threads import torch_threads


@pytest.mark.parametrize("method", ["lora", "full"])
def test_operations_of_a_step_agree_with_torchs_own_count(method: str):
    """Within 6 %: LoRA's own products and the vision tower's attention are not in the formula."""
    options = {"method": method, "batch": 1, "picture_px": 112, "words": 64, "answer": 8}
    mllm = finetune.build("small", torch.float32, method, 16, recompute=False)  # type: ignore[arg-type]
    batch = mllm.to_device(finetune.make_batch(options, finetune.SIZES["small"]["text"]["vocab_size"]))
    assert batch["input_ids"].shape == (1, 16 + 2 + 64)  # 112 px are 8 x 8 patches, 4 x 4 after merging
    with torch_threads(1), FlopCounterMode(display=False) as counted:
        answer_loss(mllm, batch).backward()
    told = finetune.operations(mllm, options)
    assert told["tokens_a_sample"] == 82
    assert told["flops_a_sample"] == pytest.approx(counted.get_total_flops(), rel=0.06)
