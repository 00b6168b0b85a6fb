"""Who shares which encoder: the invariants that tell DR, SDR and MDR apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from mmd.errors import ConfigError, ModelError
from mmd.retrieval.methods import METHODS, Retriever
from mmd.retrieval.settings import Method
from mmd.retrieval.types import Query, Response

Make = Callable[..., Any]
TOWERS: dict[str, dict[str, Any]] = {
    "vectors": {},
    "bert": {"text": "tiny-bert", "vision": "none"},
    "lora": {"text": "tiny-bert", "vision": "none", "train_text": "lora", "lora_rank": 2},
    "bert and vit": {"text": "tiny-bert", "vision": "tiny-vit", "train_vision": "full"},
}
KINDS = torch.tensor([0, 1, 0])


def storage(module: nn.Module) -> set[int]:
    return {p.untyped_storage().data_ptr() for p in module.parameters() if p.requires_grad}


@pytest.mark.parametrize("method", ["sdr", "mdr"])
def test_sdr_and_mdr_have_one_context_encoder(method: Method, make_retriever: Make):
    retriever = make_retriever(method).retriever
    assert retriever.context_tower("text") is retriever.context_tower("image")
    if method == "sdr":
        assert retriever.context_tower("intent") is retriever.context_tower("text")


@pytest.mark.parametrize("towers", TOWERS)
def test_dr_s_encoders_share_no_storage(towers: str, make_retriever: Make):
    retriever = make_retriever("dr", **TOWERS[towers]).retriever
    parts = [retriever.context_tower(name) for name in ("intent", "text", "image")]
    parts += [retriever.response_tower(name) for name in ("text", "image")]
    for place, one in enumerate(parts):
        for other in parts[place + 1 :]:
            assert not storage(one) & storage(other)


def test_sdr_separate_shares_all_but_the_intent_encoder(make_retriever: Make):
    retriever = make_retriever("sdr-separate").retriever
    assert retriever.context_tower("text") is retriever.context_tower("image")
    assert not storage(retriever.context_tower("intent")) & storage(retriever.context_tower("text"))


def test_mdr_has_one_response_encoder_and_the_others_one_a_modality(make_retriever: Make):
    mdr, sdr = make_retriever("mdr").retriever, make_retriever("sdr").retriever
    assert mdr.response_tower("text") is mdr.response_tower("image")
    assert not storage(sdr.response_tower("text")) & storage(sdr.response_tower("image"))


@pytest.mark.parametrize("towers", TOWERS)
def test_dr_is_larger_than_sdr_separate_than_sdr_than_mdr(towers: str, make_retriever: Make):
    totals = [
        make_retriever(m, **TOWERS[towers]).retriever.parameter_counts()["total"]
        for m in ("dr", "sdr-separate", "sdr", "mdr")
    ]
    assert totals[0] > totals[1] > totals[2] >= totals[3]


def test_a_shared_tensor_is_counted_once(make_retriever: Make):
    """Three adapters on one base: the base's weights are in every part, and in the total once."""
    counts = make_retriever("sdr", **TOWERS["lora"]).retriever.parameter_counts()
    parts = sum(count for name, count in counts.items() if name != "total")
    plain = make_retriever("sdr", **TOWERS["bert"]).retriever.parameter_counts()
    assert counts["total"] < parts / 2
    assert plain["total"] == sum(count for name, count in plain.items() if name != "total")


def test_mdr_has_no_intent_parameter(make_retriever: Make):
    mdr = make_retriever("mdr").retriever
    assert not [name for name, _ in mdr.named_parameters() if "intent" in name]
    assert not mdr.two_step
    assert [name for name, _ in make_retriever("sdr").retriever.named_parameters() if "intent" in name]


def test_asking_mdr_for_the_modality_is_an_error(make_retriever: Make, queries: Sequence[Query]):
    made = make_retriever("mdr")
    with pytest.raises(ModelError, match="predicts no modality"):
        made.retriever.intent_logits(made.maker.queries(queries))


@pytest.mark.parametrize("towers", ["vectors", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_an_image_only_backward_reaches_text_s_context_encoder_only_where_it_is_shared(
    method: Method, towers: str, make_retriever: Make, queries: Sequence[Query], responses: Sequence[Response]
):
    made = make_retriever(method, **TOWERS[towers])
    retriever = made.retriever
    vectors = retriever.embed_queries(made.maker.queries(queries), "image")
    (vectors @ retriever.embed_responses(made.maker.responses(responses[1:]), "image").T).sum().backward()
    touched = any(p.grad is not None and p.grad.any() for p in retriever.context_tower("text").parameters())
    assert touched == (method != "dr")


@pytest.mark.parametrize("method", METHODS)
def test_a_mixed_batch_is_encoded_as_each_row_s_own_subtask_asks(
    method: Method, make_retriever: Make, queries: Sequence[Query], responses: Sequence[Response]
):
    made = make_retriever(method, seed=1)
    retriever, inputs = made.retriever, made.maker.queries(queries)
    _stir(retriever)
    vectors, logits = retriever.encode_queries(inputs, KINDS)
    for row, kind in enumerate(KINDS.tolist()):
        alone = retriever.embed_queries(inputs.rows(slice(row, row + 1)), ("text", "image")[kind])
        torch.testing.assert_close(vectors[row], alone[0])
    if method == "mdr":
        assert logits is None
    else:
        torch.testing.assert_close(logits, retriever.intent_logits(inputs))
    out = made.maker.responses(responses)
    for row, response in enumerate(responses):
        alone = retriever.embed_responses(out.rows(slice(row, row + 1)), response.modality)
        torch.testing.assert_close(retriever.encode_responses(out)[row], alone[0])


def _stir(retriever: Retriever) -> None:
    """Move every weight a little, so that encoders differ."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in retriever.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_an_untrained_retriever_over_features_ranks_as_the_raw_vectors_do(
    method: Method, make_retriever: Make, queries: Sequence[Query], responses: Sequence[Response]
):
    """A space at least as wide as the features: cosines of text are those of the mix of the turns' vectors."""
    made = make_retriever(method, dim=32, vision="none", dropout=0.3)
    inputs, out = made.maker.queries(queries), made.maker.responses(responses[:2])
    parts = inputs.text.vectors.unflatten(1, (3, -1))
    weights = torch.tensor([1.0, 1.0, 0.0])[None, :, None]
    raw = nn.functional.cosine_similarity((weights * parts).sum(1)[:, None], out.text.vectors[None], dim=2)
    ours = made.retriever.embed_queries(inputs, "text") @ made.retriever.encode_responses(out).T
    torch.testing.assert_close(ours, raw, atol=5e-3, rtol=0)


def test_encoders_of_one_seed_are_equal_and_torch_s_generator_is_left_alone(make_retriever: Make):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, two, other = (make_retriever("sdr", seed=seed).retriever.state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("ask", ["context_tower", "response_tower"])
def test_an_unknown_modality_names_the_known_ones(ask: str, make_retriever: Make):
    with pytest.raises(ModelError, match=r"'video'.*text, image"):
        getattr(make_retriever("sdr").retriever, ask)("video")


def test_an_unknown_method_names_the_known_ones(make_retriever: Make):
    spec = make_retriever("mdr").retriever.spec.model_copy(update={"method": "xdr"})
    with pytest.raises(ConfigError, match=r"'xdr'.*dr, sdr, sdr-separate, mdr"):
        Retriever(spec)


def test_a_text_model_must_come_with_the_spec(make_retriever: Make):
    spec = make_retriever("mdr", **TOWERS["bert"]).retriever.spec
    with pytest.raises(ModelError, match="load_bases"):
        Retriever(spec)


def test_temperature_is_a_weight_only_when_it_is_learnt(make_retriever: Make):
    made = make_retriever("mdr")
    assert float(made.retriever.temperature()) == pytest.approx(0.05)
    assert not made.retriever.log_temperature.requires_grad
    learnt = Retriever(made.retriever.spec.model_copy(update={"learn_temperature": True}))
    learnt.temperature().backward()  # type: ignore[no-untyped-call]
    assert learnt.log_temperature.grad is not None


def test_a_modality_without_rows_is_no_fault(make_retriever: Make, queries: Sequence[Query]):
    made = make_retriever("dr")
    none = made.maker.queries([])
    assert made.retriever.encode_queries(none, KINDS[:0])[0].shape == (0, 16)
    assert (
        made.retriever.encode_queries(made.maker.queries(queries), torch.zeros(3, dtype=torch.int64))[0]
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("name", ["intent", "shared", "integrated", "items", "a.b", "Text", ""])
def test_a_modality_cannot_have_the_name_of_an_encoder(name: str, make_retriever: Make):
    spec = make_retriever("dr").retriever.spec.model_copy(update={"modalities": ("text", name)})
    with pytest.raises(ConfigError, match="another name"):
        Retriever(spec)


def test_a_fourth_modality_is_a_name_more(make_retriever: Make, responses: Sequence[Response]):
    made = make_retriever("dr", modalities=("text", "image", "product", "video"))
    assert len(made.retriever.parameter_counts()) == 1 + 4 + 4 + 1 + 1  # intent, contexts, responses, head, total
    assert made.retriever.encode_responses(made.maker.responses(responses)).shape == (3, 16)


def test_more_tokens_than_a_model_has_positions_are_refused(make_retriever: Make):
    with pytest.raises(ConfigError, match=r"context_tokens=600.*512"):
        make_retriever("mdr", **TOWERS["bert"], context_tokens=600)
