"""Extractors chosen by settings, their real output, and batches with bad rows."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mmd.corpora.images import check_image
from mmd.corpora.settings import LimitSettings
from mmd.errors import ModelError
from mmd.features import extract, ocr, text, vision
from mmd.features.base import OCR_TABLE, VECTOR_TABLE
from mmd.features.extract import (
    ExtractorInfo,
    Extractors,
    OcrStage,
    VectorStage,
    attempt,
    build_extractors,
    build_stage,
)
from mmd.features.ocr import RapidOcr, rapidocr_installed
from mmd.features.pictures import decode_rgb
from mmd.features.settings import FeatureSettings
from mmd.features.text import UseMultilingual, use_installed
from mmd.features.vision import Descriptor, EfficientNetLite0, efficientnet_installed

needs_ocr = pytest.mark.skipif(not rapidocr_installed(), reason="rapidocr is not installed")
needs_efficientnet = pytest.mark.skipif(not efficientnet_installed(), reason="EfficientNet-Lite0 is not installed")
needs_use = pytest.mark.skipif(not use_installed(), reason="multilingual USE is not installed")


def png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def picture(colour: str, size: tuple[int, int] = (80, 80), *, shape: str = "disc") -> bytes:
    """A coloured disc or box on white."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    box = (size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4)
    (draw.ellipse if shape == "disc" else draw.rectangle)(box, fill=colour)
    return png(image)


def sign(words: str, at: tuple[int, int], size: tuple[int, int], font_px: int) -> bytes:
    """Black words on white."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text(at, words, fill="black", font=ImageFont.load_default(font_px))
    return png(image)


# --- OCR -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rapid() -> RapidOcr:
    return RapidOcr()


@needs_ocr
def test_a_drawn_sign_is_read_where_it_stands(rapid: RapidOcr):
    """The words are drawn from (60, 40) in 40 px type, so their box starts about there."""
    (lines,) = rapid.recognise([sign("FREE DELIVERY", (60, 40), (480, 140), 40)])
    assert [line.text for line in lines] == ["FREE DELIVERY"]
    x0, y0, x1, y1 = lines[0].box
    assert abs(x0 - 60) < 12
    assert 30 < y0 < 60
    assert 300 < x1 <= 480
    assert y0 + 20 < y1 < 100
    assert 0.9 < lines[0].score <= 1.0


@needs_ocr
def test_boxes_of_a_shrunk_picture_are_in_its_own_pixels():
    """Read at a quarter of its size, the sign's box must still lie where it was drawn."""
    data = sign("FREE DELIVERY", (960, 640), (1920, 1280), 96)
    (lines,) = RapidOcr(side_px=480).recognise([data])
    assert [line.text.replace(" ", "") for line in lines] == ["FREEDELIVERY"]
    x0, y0, x1, y1 = lines[0].box
    assert abs(x0 - 960) < 40
    assert 640 < (y0 + y1) / 2 < 760
    assert x1 > 1500


@needs_ocr
def test_a_picture_without_text_has_no_lines(rapid: RapidOcr):
    assert rapid.recognise([picture("red"), png(Image.new("L", (3, 2)))]) == [(), ()]


@needs_ocr
def test_ocr_names_its_engine_version_and_size():
    assert RapidOcr(640).name.startswith("rapidocr-")
    assert RapidOcr(640).name != RapidOcr(960).name


def test_ocr_that_is_asked_for_but_missing_comes_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ocr, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"pip install 'mmd\[ocr\]'"):
        build_extractors(FeatureSettings(ocr="rapidocr"))


# --- image vectors ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["descriptor", "efficientnet_lite0"])
def encoder(request: pytest.FixtureRequest) -> Descriptor | EfficientNetLite0:
    if request.param == "descriptor":
        return Descriptor()
    if not efficientnet_installed():
        pytest.skip("EfficientNet-Lite0 is not installed")
    return EfficientNetLite0()


def test_image_vectors_have_unit_length_and_the_promised_shape(encoder: Descriptor | EfficientNetLite0):
    vectors = encoder.encode([picture("red"), png(Image.new("RGB", (1, 1)))])
    assert vectors.shape == (2, encoder.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_an_image_vector_does_not_depend_on_its_batch(encoder: Descriptor | EfficientNetLite0):
    images = [picture("red"), picture("blue", (200, 90)), picture("green", shape="box")]
    np.testing.assert_array_equal(encoder.encode(images), np.concatenate([encoder.encode([i]) for i in images]))


def test_alike_pictures_are_nearer_than_unlike_ones(encoder: Descriptor | EfficientNetLite0):
    red, dark_red, blue_box = encoder.encode([picture("red"), picture("#e01010"), picture("blue", shape="box")])
    assert red @ dark_red > red @ blue_box


def test_what_cannot_be_decoded_is_a_value_error(encoder: Descriptor | EfficientNetLite0):
    with pytest.raises(ValueError, match="not a decodable picture"):
        encoder.encode([picture("red")[:60]])


def test_a_file_that_is_two_things_is_decoded_as_the_one_that_was_checked():
    """A WebP with a Photo CD's mark at its place, which Pillow left to itself takes for a Photo CD."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "WEBP")
    both = buffer.getvalue().ljust(2_048, b"\0") + b"PCD_" + bytes(200_000)
    assert check_image(both, LimitSettings()) == ("WEBP", 64, 64)
    assert decode_rgb(both).size == (64, 64)


def test_transparency_counts_as_white():
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    white = Image.new("RGB", (40, 40), "white")
    np.testing.assert_array_equal(*Descriptor().encode([png(clear), png(white)])[:, None])


def test_the_descriptor_of_a_white_picture_by_hand():
    """One colour fills bin (3, 3, 3) = 63; every cell's mean is white; there are no edges.

    Two unit parts (colour: one entry of 1; layout: 48 equal entries of 1/sqrt(48)) and a zero part:
    after scaling to unit length the colour entry is 1/sqrt(2).
    """
    (vector,) = Descriptor().encode([png(Image.new("RGB", (30, 50), "white"))])
    assert vector[63] == pytest.approx(2**-0.5)
    assert np.count_nonzero(vector[:64]) == 1
    np.testing.assert_allclose(vector[64:112], 2**-0.5 / 48**0.5, rtol=1e-5)
    assert not vector[112:].any()


def test_the_descriptor_tells_upright_edges_from_level_ones():
    """A vertical step has its gradient along x: orientation bin 0 of 8; a horizontal one: pi/2, bin 4."""
    upright = Image.new("RGB", (64, 64), "white")
    upright.paste("black", (0, 0, 32, 64))
    vectors = Descriptor().encode([png(upright), png(upright.rotate(90))])
    bins = vectors[:, 112:].reshape(2, 16, 8).sum(axis=1).argmax(axis=1)
    assert bins.tolist() == [0, 4]


@needs_efficientnet
def test_the_network_has_its_pretrained_weights():
    """ImageNet weights spread features of a disc and of noise apart; a random network's are nearly parallel."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    disc, static = EfficientNetLite0().encode([picture("orange"), png(noise)])
    assert disc @ static < 0.5


# --- sentence vectors ------------------------------------------------------------------------------------


@needs_use
def test_sentences_that_mean_the_same_are_near_across_languages():
    vectors = UseMultilingual().encode(["Where is my parcel?", "我的包裹在哪里？", "I like this red dress"])
    assert vectors.shape == (3, 512)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


@needs_use
def test_a_sentence_vector_does_not_depend_on_its_batch():
    encoder = UseMultilingual()
    texts = ["short", "", "a much longer text " * 40]
    np.testing.assert_array_equal(encoder.encode(texts), np.concatenate([encoder.encode([t]) for t in texts]))


# --- choosing --------------------------------------------------------------------------------------------


def test_auto_does_without_what_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    for name in ("rapidocr_installed", "efficientnet_installed", "use_installed"):
        monkeypatch.setattr(extract, name, lambda: False)
    chosen = build_extractors(FeatureSettings())
    assert chosen.describe() == {"ocr": None, "vision": ExtractorInfo("descriptor-1", 240), "text": None}


@pytest.mark.parametrize(
    ("module", "settings", "way_out"),
    [
        (vision, FeatureSettings(vision="efficientnet_lite0"), r"features\.vision=descriptor"),
        (text, FeatureSettings(text="use_multilingual"), r"features\.text=none"),
    ],
)
def test_an_encoder_that_is_asked_for_but_missing_names_the_way_out(
    module: object, settings: FeatureSettings, way_out: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=way_out):
        build_extractors(settings)


def test_equal_extractors_pass_the_check_and_others_are_refused():
    here = Extractors(ocr=None, vision=Descriptor(), text=None)
    same = {"ocr": ExtractorInfo("another-ocr", 0), "vision": ExtractorInfo("descriptor-1", 240), "text": None}
    here.check(same)
    with pytest.raises(ModelError, match="ocr: trained with another-ocr"):
        here.check(same, roles=("ocr",))
    with pytest.raises(ModelError, match=r"text: trained with use-9 \(dim 512\), here none"):
        here.check(same | {"text": ExtractorInfo("use-9", 512)})


def test_a_role_without_extractor_has_no_stage():
    with pytest.raises(ModelError, match=r"set features\.text"):
        build_stage("text", Extractors(ocr=None, vision=Descriptor(), text=None))


# --- batches ---------------------------------------------------------------------------------------------


def test_a_bad_picture_spoils_no_other():
    batch = pa.table({"id": ["a", "b", "c"], "data": [picture("red"), b"junk", picture("blue")]})
    done = VectorStage(Descriptor(), "data")(batch)
    assert done.schema == VECTOR_TABLE
    assert done["id"].to_pylist() == ["a", "b", "c"]
    assert [v is None for v in done["vector"].to_pylist()] == [False, True, False]
    errors = done["error"].to_pylist()
    assert errors[0] == errors[2] == ""
    assert errors[1].startswith("ValueError: not a decodable picture")
    np.testing.assert_array_equal(done["vector"][2].as_py(), Descriptor().encode([picture("blue")])[0])


@needs_ocr
def test_ocr_of_a_batch_keeps_lines_and_errors_apart(rapid: RapidOcr):
    data = [sign("SIZE XL", (20, 20), (240, 80), 32), b"", picture("red")]
    done = OcrStage(rapid)(pa.table({"id": ["a", "b", "c"], "data": data}))
    assert done.schema == OCR_TABLE
    lines = done["lines"].to_pylist()
    assert [line["text"] for line in lines[0]] == ["SIZE XL"]
    assert lines[1:] == [None, []]


def test_a_batch_without_the_declared_columns_is_refused():
    with pytest.raises(KeyError, match=r"needs columns \['data'\]"):
        VectorStage(Descriptor(), "data")(pa.table({"id": ["a"]}))


def test_a_batch_that_works_is_run_once_and_a_bad_one_row_by_row():
    calls: list[int] = []

    def halve(values: Sequence[int]) -> list[float]:
        calls.append(len(values))
        return [1 / v for v in values]

    assert attempt(halve, [1, 2]) == ([1.0, 0.5], ["", ""])
    assert calls == [2]
    results, errors = attempt(halve, [1, 0, 4])
    assert results == [1.0, None, 0.25]
    assert errors == ["", "ZeroDivisionError: division by zero", ""]


def test_a_missing_model_is_no_rows_fault():
    class Broken:
        name, dim = "broken", 1

        def encode(self, images: Sequence[bytes]) -> NDArray[np.float32]:
            raise ModelError(f"weights for {len(images)} pictures are gone")

    with pytest.raises(ModelError, match="weights for 1 pictures are gone"):
        VectorStage(Broken(), "data")(pa.table({"id": ["a"], "data": [b""]}))
