"""Pictures: every way one can be unusable has its own reason, and cheap checks come before dear ones."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmd.corpora.base import ImageSource
from mmd.corpora.images import ImageLoader, check_image, image_size
from mmd.corpora.settings import LimitSettings
from mmd.errors import BadRecordError
from mmd.schema import image_id

LIMITS = LimitSettings()


def picture(width: int = 40, height: int = 30, kind: str = "PNG") -> bytes:
    image = PIL.Image.effect_noise((width, height), 80).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def hollow_png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that claims a size and has no pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IDAT", b"")


def reason(data: bytes, limits: LimitSettings = LIMITS) -> str:
    with pytest.raises(BadRecordError) as caught:
        check_image(data, limits)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_a_sound_picture_gives_format_and_size(kind: str):
    assert check_image(picture(40, 30, kind), LIMITS) == (kind, 40, 30)


def test_the_header_alone_tells_the_size_and_the_bomb():
    assert image_size(hollow_png(40, 30), LIMITS) == (40, 30)
    with pytest.raises(BadRecordError, match="8000 x 8000"):
        image_size(hollow_png(8_000, 8_000), LIMITS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_a_picture_cut_short_is_truncated(kind: str):
    data = picture(64, 64, kind)
    assert reason(data[: len(data) // 2]) == "image_truncated"


def test_a_picture_cut_within_its_header_is_truncated():
    assert reason(picture()[:12]) == "image_truncated"


def test_no_bytes_are_an_empty_picture():
    assert reason(b"") == "image_empty"


@pytest.mark.parametrize("data", [b"<html>not found</html>", b"\x00" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_other_bytes_are_not_an_image(data: bytes):
    assert reason(data) == "not_an_image"


@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_a_bomb_is_found_in_the_header_without_a_warning(side: int):
    """8,000² is above our limit only, 12,000² where Pillow warns, 60,000² where Pillow raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason(hollow_png(side, side)) == "image_bomb"


def test_a_text_chunk_that_unpacks_too_far_is_a_bomb():
    note = png_chunk(b"zTXt", b"note\x00\x00" + zlib.compress(b"a" * 80 * 2**20))
    assert reason(hollow_png(4, 4, note)) == "image_bomb"


def test_too_many_bytes_are_refused_before_anything_is_read():
    assert reason(b"x" * 2**20, LimitSettings(max_image_mb=0.5)) == "image_too_large"


@given(st.binary(max_size=200), st.integers(0, 300))
def test_damaged_bytes_only_ever_raise_a_reason(noise: bytes, at: int):
    data = picture()
    for damaged in (noise, data[:at] + noise + data[at + len(noise) :]):
        try:
            check_image(damaged, LIMITS)
        except BadRecordError as err:
            assert err.reason in {"image_empty", "image_truncated", "not_an_image", "image_bomb"}  # noqa: PT017


@settings(deadline=None)
@given(progressive=st.booleans(), at=st.integers(700, 9_000), noise=st.binary(max_size=30), cut_short=st.booleans())
def test_the_verdict_on_a_jpeg_is_that_of_a_full_decode(*, progressive: bool, at: int, noise: bytes, cut_short: bool):
    """The check computes fewer pixels than a full decode, yet misses no damage that one finds."""
    buffer = io.BytesIO()
    PIL.Image.effect_noise((90, 70), 80).convert("RGB").save(buffer, "JPEG", quality=90, progressive=progressive)
    data = buffer.getvalue()
    damaged = data[:at] + noise + (b"" if cut_short else data[at + len(noise) :])
    try:
        with PIL.Image.open(io.BytesIO(damaged)) as full:
            full.load()
    except OSError:
        assert reason(damaged) == "image_truncated"
    else:
        assert check_image(damaged, LIMITS) == ("JPEG", 90, 70)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.png").write_bytes(picture())
    (tmp_path / "secret.png").write_bytes(picture())
    return root


def load_reason(root: Path, path: str) -> str:
    with pytest.raises(BadRecordError) as caught:
        ImageLoader(str(root), LIMITS).load(ImageSource(path=path))
    return caught.value.reason


def test_a_picture_is_addressed_by_the_hash_of_its_bytes(corpus: Path):
    image = ImageLoader(str(corpus), LIMITS).load(ImageSource(path="images/a.png", description="noise"))
    assert image.id == image_id((corpus / "images" / "a.png").read_bytes())
    assert (image.format, image.width, image.height, image.description) == ("PNG", 40, 30, "noise")


def test_equal_bytes_are_decoded_once(corpus: Path):
    loader = ImageLoader(str(corpus), LIMITS)
    data = (corpus / "images" / "a.png").read_bytes()
    assert loader.load(ImageSource(path="images/a.png")) == loader.load(ImageSource(data=data))
    assert loader.decoded == 1


@pytest.mark.parametrize("path", ["../secret.png", "images/../../secret.png", "/etc/hostname"])
def test_a_path_out_of_the_corpus_is_refused(corpus: Path, path: str):
    assert load_reason(corpus, path) == "path_escape"


def test_a_link_out_of_the_corpus_is_refused(corpus: Path):
    (corpus / "images" / "link.png").symlink_to(corpus.parent / "secret.png")
    assert load_reason(corpus, "images/link.png") == "path_escape"


def test_a_link_inside_the_corpus_is_followed(corpus: Path):
    (corpus / "images" / "link.png").symlink_to("a.png")
    assert ImageLoader(str(corpus), LIMITS).load(ImageSource(path="images/link.png")).width == 40


def test_a_path_that_stays_inside_by_detour_is_read(corpus: Path):
    assert ImageLoader(str(corpus), LIMITS).load(ImageSource(path="images/../images/a.png")).width == 40


@pytest.mark.parametrize("path", ["images/none.png", "images", "x" * 5_000, "nul\0byte.png"])
def test_what_cannot_be_read_is_missing(corpus: Path, path: str):
    assert load_reason(corpus, path) == "image_missing"


def test_a_pipe_is_missing_rather_than_waited_for(corpus: Path):
    os.mkfifo(corpus / "pipe.png")
    assert load_reason(corpus, "pipe.png") == "image_missing"


def test_an_empty_file_is_an_empty_picture(corpus: Path):
    (corpus / "empty.png").touch()
    assert load_reason(corpus, "empty.png") == "image_empty"


def test_a_remote_address_is_not_fetched(corpus: Path):
    assert load_reason(corpus, "https://example.org/a.png") == "remote_image"


def test_a_simulated_corpus_has_no_paths():
    with pytest.raises(BadRecordError, match="relative to the corpus folder"):
        ImageLoader(None, LIMITS).load(ImageSource(path="a.png"))
