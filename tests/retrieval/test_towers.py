"""Towers: where heads start, what vision models are read as, and bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from mmd.retrieval.bases import load_vision
from mmd.retrieval.settings import TowerSettings
from mmd.retrieval.towers import ResidualHead, TransformerVision, VectorText, pooled_pictures, projection, vision_width
from mmd.retrieval.types import Query, Response

Make = Callable[..., Any]


def test_a_projection_into_a_wider_space_keeps_cosines_exactly():
    vectors = functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    wide = vectors @ projection(8, 12).T
    torch.testing.assert_close(wide @ wide.T, vectors @ vectors.T)


def test_a_projection_into_a_narrower_space_keeps_cosines_on_average():
    """512 → 256 orthonormal rows: a cosine's error deviates by about sqrt(1/256 · (1 - 256/512)) = 0.044."""
    vectors = functional.normalize(torch.randn(200, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    narrow = functional.normalize(vectors @ projection(512, 256).T, dim=1)
    error = (narrow @ narrow.T - vectors @ vectors.T).flatten()
    assert float(error.std()) == pytest.approx(0.044, abs=0.01)
    rows = projection(512, 256)
    torch.testing.assert_close(rows @ rows.T, 2.0 * torch.eye(256), atol=1e-4, rtol=0)


def test_heads_of_queries_and_responses_start_with_one_projection():
    settings = TowerSettings(dim=8, hidden=12)
    query, response = VectorText(3, 16, settings), VectorText(1, 16, settings)
    last_user, everything, last_agent = query.head.skip.weight.detach().chunk(3, dim=1)
    own = response.head.skip.weight.detach()
    assert torch.equal(last_user, own)
    assert torch.equal(everything, own)
    assert not last_agent.any()


def test_an_untrained_head_does_not_feel_its_dropout_and_learns_at_the_first_step():
    head = ResidualHead(1, 16, 8, 12, dropout=0.5).train()
    vectors = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(vectors), vectors @ projection(16, 8).T)
    head(vectors).square().sum().backward()
    assert head.second.weight.grad.any()
    assert head.skip.weight.grad.any()


@pytest.fixture(scope="module")
def vision_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A ResNet and a SigLIP of a few thousand weights, with their image processors."""
    from transformers import AutoModel, ResNetConfig, SiglipConfig
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    configs = {
        "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        "siglip": SiglipConfig(
            text_config=small | {"vocab_size": 20}, vision_config=small | {"image_size": 32, "patch_size": 16}
        ),
    }
    side = {"height": 32, "width": 32}
    processors = {
        "resnet": ConvNextImageProcessorPil(size={"shortest_edge": 32}),
        "siglip": SiglipImageProcessorPil(size=side),
    }
    folders = {name: tmp_path_factory.mktemp(name) for name in configs}
    for name, folder in folders.items():
        torch.manual_seed(0)
        AutoModel.from_config(configs[name]).save_pretrained(folder)
        processors[name].save_pretrained(folder)
    return folders


@pytest.mark.parametrize("name", ["resnet", "siglip"])
def test_a_vision_model_gives_one_vector_a_picture(name: str, vision_folders: dict[str, Path]):
    model = load_vision(vision_folders[name]).eval()
    assert pooled_pictures(model, torch.zeros(2, 3, 32, 32)).shape == (2, vision_width(model.config)) == (2, 16)


@pytest.mark.parametrize("mode", ["full", "frozen"])
@pytest.mark.parametrize("name", ["resnet", "siglip"])
def test_towers_read_any_vision_model(
    name: str, mode: str, vision_folders: dict[str, Path], make_retriever: Make, responses: Sequence[Response]
):
    made = make_retriever("mdr", text="tiny-bert", vision=str(vision_folders[name]), train_vision=mode)
    out = made.retriever.encode_responses(made.maker.responses(responses))
    torch.testing.assert_close(out.norm(dim=1), torch.ones(3))
    blank = made.maker.responses([Response(r.id, r.modality, r.title, r.text) for r in responses])
    moved = (made.retriever.encode_responses(blank) - out).abs().amax(1)
    assert moved[0] < 1e-6 < moved[1:].min()


def test_batch_statistics_stay_as_they_came(vision_folders: dict[str, Path]):
    encoder = TransformerVision(load_vision(vision_folders["resnet"])).train()
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    together = encoder(pixels)
    torch.testing.assert_close(together[:1], encoder(pixels[:1]), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())


def test_bfloat16_is_for_models_alone_and_stays_near_float32(make_retriever: Make, queries: Sequence[Query]):
    made = make_retriever("mdr", text="tiny-bert", vision="none")
    inputs = made.maker.queries(queries)
    exact = made.retriever.embed_queries(inputs, "text")
    made.retriever.use_dtype(torch.bfloat16)
    rough = made.retriever.embed_queries(inputs, "text")
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert float((rough * exact).sum(1).min().detach()) > 0.999
    assert all(parameter.dtype == torch.float32 for parameter in made.retriever.parameters())
