"""Losses agree with arithmetic on paper and with torch's own cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from mmd.retrieval.losses import batch_loss, class_weights, contrastive_loss, duplicate_mask, intent_loss

NOTHING = torch.zeros((2, 2), dtype=torch.bool)


def unit(*rows: tuple[float, ...]) -> torch.Tensor:
    return functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def random_batch(rows: int = 6, dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return tuple(functional.normalize(torch.randn(rows, dim, generator=draw), dim=1) for _ in range(2))  # type: ignore[return-value]


def test_two_by_two_by_hand():
    """Cosines [[1, 0], [0.6, 0.8]] at temperature 0.5: logits [[2, 0], [1.2, 1.6]].

    Losses log(1 + e^-2) = 0.12693 and log(1 + e^-0.4) = 0.51301; mean 0.31997.
    """
    loss = contrastive_loss(unit((1, 0), (0.6, 0.8)), unit((1, 0), (0, 1)), torch.arange(2), NOTHING, 0.5)
    assert float(loss) == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(-0.4))) / 2, abs=1e-6)
    assert float(loss) == pytest.approx(0.31997, abs=1e-5)


def test_infonce_equals_torch_cross_entropy():
    queries, responses = random_batch()
    mask = torch.zeros((6, 6), dtype=torch.bool)
    ours = contrastive_loss(queries, responses, torch.arange(6), mask, 0.05)
    assert float(ours) == pytest.approx(
        float(functional.cross_entropy(queries @ responses.T / 0.05, torch.arange(6))), abs=1e-6
    )


def test_a_masked_response_is_no_negative():
    """With the only negative masked nothing is left to be confused with: 0. The other row keeps its 0.51301."""
    mask = torch.tensor([[False, True], [False, False]])
    loss = contrastive_loss(unit((1, 0), (0.6, 0.8)), unit((1, 0), (0, 1)), torch.arange(2), mask, 0.5)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-0.4)) / 2, abs=1e-6)


def test_a_masked_response_gets_no_gradient():
    queries, responses = random_batch()
    responses.requires_grad_()
    mask = torch.zeros((6, 6), dtype=torch.bool)
    mask[:, 5] = True
    contrastive_loss(queries[:5], responses, torch.arange(5), mask[:5], 0.1).backward()  # type: ignore[no-untyped-call]
    assert responses.grad is not None
    assert not responses.grad[5].any()
    assert responses.grad[:5].any(dim=1).all()


def test_the_right_response_is_never_masked():
    everything = torch.ones((2, 2), dtype=torch.bool)
    loss = contrastive_loss(unit((1, 0), (0, 1)), unit((1, 0), (0, 1)), torch.arange(2), everything, 1.0)
    assert float(loss) == 0.0


def test_equal_responses_and_siblings_are_masked():
    mask = duplicate_mask(["a", "b", "a", "c"], [(), ("c",), (), ("elsewhere",)])
    assert mask.tolist() == [
        [True, False, True, False],
        [False, True, False, True],
        [True, False, True, False],
        [False, False, False, True],
    ]


def test_mined_negatives_are_masked_where_they_are_right():
    mask = duplicate_mask(["a", "b"], [("n",), ()], ["a", "b", "n", "m"])
    assert mask.tolist() == [[True, False, True, False], [False, True, False, False]]


def test_two_step_methods_know_no_negative_of_another_modality():
    """DR and SDR: the modalities' losses weighted by their counts; MDR: everything against everything."""
    queries, responses = random_batch()
    kinds = torch.tensor([0, 1, 0, 0, 1, 0])
    mask = torch.zeros((6, 6), dtype=torch.bool)
    batch = {
        "queries": queries,
        "responses": responses,
        "positives": torch.arange(6),
        "mask": mask,
        "query_kinds": kinds,
        "response_kinds": kinds,
        "temperature": 0.1,
    }
    by_hand = 0.0
    for kind in (0, 1):
        own = (kinds == kind).nonzero()[:, 0]
        part = functional.cross_entropy(queries[own] @ responses[own].T / 0.1, torch.arange(len(own)))
        by_hand += len(own) / 6 * float(part)
    for method in ("dr", "sdr", "sdr-separate"):
        assert float(batch_loss(method, **batch).total) == pytest.approx(by_hand, abs=1e-6)  # type: ignore[arg-type]
    everything = float(functional.cross_entropy(queries @ responses.T / 0.1, torch.arange(6)))
    assert float(batch_loss("mdr", **batch).total) == pytest.approx(everything, abs=1e-6)  # type: ignore[arg-type]
    assert everything > by_hand


def test_the_loss_does_not_depend_on_the_order_of_samples():
    queries, responses = random_batch()
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    mask = duplicate_mask(list("abcabd"), [()] * 6)
    plain = contrastive_loss(queries, responses, torch.arange(6), mask, 0.1)
    moved = contrastive_loss(queries[order], responses[order], torch.arange(6), mask[order][:, order], 0.1)
    assert float(plain) == pytest.approx(float(moved), abs=1e-6)


def test_intent_loss_weighs_rare_modalities_more():
    """Counts 3 and 1: weights 4/(2·3) = 2/3 and 4/(2·1) = 2. Even logits cost log 2 whatever the weights."""
    weights = class_weights({"text": 3, "image": 1}, ("text", "image"))
    assert weights.tolist() == pytest.approx([2 / 3, 2.0])
    even = torch.zeros((4, 2))
    targets = torch.tensor([0, 0, 0, 1])
    assert float(intent_loss(even, targets, weights)) == pytest.approx(math.log(2), abs=1e-6)
    says_text = torch.tensor([[1.0, 0.0]] * 4)
    right, wrong = math.log1p(math.exp(-1)), math.log1p(math.exp(1))
    assert float(intent_loss(says_text, targets, weights)) == pytest.approx((2 * right + 2 * wrong) / 4, abs=1e-6)


def test_a_modality_without_samples_has_no_weight():
    assert class_weights({"text": 3}, ("text", "image")).tolist() == [1.0, 0.0]


def test_the_total_is_retrieval_plus_intent():
    queries, responses = random_batch()
    kinds = torch.tensor([0, 1, 0, 0, 1, 0])
    found = batch_loss(
        "sdr",
        queries=queries,
        responses=responses,
        positives=torch.arange(6),
        mask=torch.zeros((6, 6), dtype=torch.bool),
        query_kinds=kinds,
        response_kinds=kinds,
        temperature=0.1,
        logits=torch.zeros((6, 2)),
    )
    assert float(found.intent) == pytest.approx(math.log(2), abs=1e-6)
    assert float(found.total) == pytest.approx(float(found.retrieval) + math.log(2), abs=1e-6)
