"""Picture files that unpack to too much, contradict themselves, or are two things at once."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

from tests.serve_apps.hostile_case import EITHER, LOOKING, REFUSED, TAKEN, Case, data_url, picture, says, sent

_PNG = b"\x89PNG\r\n\x1a\n"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 2, pixels: bytes | None = None) -> bytes:
    """Return a PNG of any claims; its pixels are zeros of the right number unless given."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = bytes((1 + (width * channels * bits + 7) // 8) * min(height, 64)) if pixels is None else pixels
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return _PNG + head + b"".join(chunks) + _chunk(b"IDAT", zlib.compress(rows, 1)) + _chunk(b"IEND", b"")


def _gif(screen: tuple[int, int], frame: tuple[int, int], frames: int = 1) -> bytes:
    """Return a GIF whose frames may be larger than its screen; each has one pixel's worth of data."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    one = b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\x00"
    return head + one * frames + b";"


def _segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def many_scans(blocks_per_side: int, scans: int) -> bytes:
    """Return a grey progressive JPEG whose scans each say in a few bytes that all its blocks stay as they are.

    A decoder visits every block in every scan (ITU-T T.81, G.1.2.2: a run of end-of-band codes).
    """
    side, blocks = blocks_per_side * 8, blocks_per_side**2
    head = _segment(0xDB, bytes([0, *[1] * 64])) + _segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    tables = _segment(0xC4, bytes([0x00, 1, *[0] * 15, 0x00])) + _segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))
    first = _segment(0xDA, b"\1\1\0\0\0\0") + bytes((blocks + 7) // 8)
    runs, left = "", blocks  # code 0: a run of 2^14 blocks and as many more as 14 bits say
    while left > 0:
        run = min(left, 2**15 - 1)
        runs, left = f"{runs}0{max(0, run - 2**14):014b}", left - run
    runs += "1" * (-len(runs) % 8)
    coded = int(runs, 2).to_bytes(len(runs) // 8, "big").replace(b"\xff", b"\xff\x00")
    return b"\xff\xd8" + head + tables + first + (_segment(0xDA, b"\1\1\0\1\x3f\0") + coded) * scans + b"\xff\xd9"


def _webp(width: int, height: int) -> bytes:
    """Return a lossless WebP of one pixel on a canvas of any size."""
    pixel = picture("WEBP", (1, 1), lossless=True)[12:]
    extent = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<IB3x", 10, 0) + extent + pixel
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _bmp(width: int, height: int, bits: int = 24, compression: int = 0) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 1_000, 0, 0, 54) + head + bytes(1_000)


_TEXT = zlib.compress(bytes(60 * 2**20), 9)  # 60 MiB in 60 KiB


def _bombs() -> Iterator[tuple[str, bytes]]:
    """Yield files that claim, or unpack to, more than is taken."""
    yield "png_100000", _png(100_000, 100_000, pixels=b"")
    yield "png_2_to_the_31", _png(2**31 - 1, 2**31 - 1, pixels=b"")
    yield "png_line", _png(2**31 - 1, 1, pixels=b"")
    yield "png_8000_in_one_bit", _png(8_000, 8_000, bits=1, colour=0)
    yield "png_text", _png(4, 4, _chunk(b"zTXt", b"k\0\0" + _TEXT))
    yield "png_texts", _png(4, 4, *[_chunk(b"zTXt", b"k%d\0\0" % n + zlib.compress(bytes(2**20))) for n in range(99)])
    yield "png_itext", _png(4, 4, _chunk(b"iTXt", b"k\0\1\0\0\0" + _TEXT))
    yield "png_profile", _png(4, 4, _chunk(b"iCCP", b"k\0\0" + _TEXT))
    yield "gif_screen", _gif((65_535, 65_535), (1, 1))
    yield "gif_frame", _gif((1, 1), (65_535, 65_535))
    yield "gif_line", _gif((65_535, 1), (65_535, 65_535))
    yield "webp_canvas", _webp(16_383, 16_383)
    yield "bmp_2_to_the_31", _bmp(2**31 - 1, 2**31 - 1)
    yield "bmp_upside_down", _bmp(100_000, -100_000)
    yield "bmp_run_length", _bmp(60_000, 60_000, bits=8, compression=1)
    yield "jpeg_65500", b"\xff\xd8" + _segment(0xC0, struct.pack(">BHHB", 8, 65_500, 65_500, 1) + b"\1\x11\0")
    yield from _many_pieces(2 * 2**20)
    yield "jpeg_many_scans", many_scans(790, 4_000)


def _many_pieces(size: int) -> Iterator[tuple[str, bytes]]:
    """Yield files of pieces of a few bytes, each of which a parser steps over."""
    png, jpeg, gif = _png(4, 4), picture("JPEG"), _gif((8, 8), (8, 8))
    none = _chunk(b"abCd", b"") * (size // 12)
    yield "png_pieces", png[:33] + none + png[33:]
    yield "png_pieces_behind", png[:-12] + none + png[-12:]
    yield "png_texts_of_a_sign", png[:33] + _chunk(b"tEXt", b"k\0v") * (size // 15) + png[33:]
    for name, piece in (("comments", _segment(0xFE, b"")), ("tables", _segment(0xDB, b"")), ("fill", b"\xff")):
        yield f"jpeg_{name}", jpeg[:2] + piece * (size // len(piece)) + jpeg[2:]
    yield "gif_comments", gif[:19] + b"!\xfe\x01a\0" * (size // 5) + gif[19:]
    yield "gif_comment_of_signs", gif[:19] + b"!\xfe" + b"\x01a" * (size // 2) + b"\0" + gif[19:]
    yield "gif_noise", gif[:19] + bytes(size) + gif[19:]


def _damaged() -> Iterator[tuple[str, bytes]]:
    """Yield files that break off or contradict themselves."""
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        whole = picture(kind, (64, 64))
        yield f"{kind}_head", whole[:13]
        yield f"{kind}_half", whole[: len(whole) // 2]
        yield f"{kind}_no_end", whole[:-12]
        yield f"{kind}_zeroed", whole[:30] + bytes(len(whole) - 30)
        yield f"{kind}_ones", whole[:30] + b"\xff" * (len(whole) - 30)
    yield "png_no_pixels", _PNG + _chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)) + _chunk(b"IEND", b"")
    yield "png_0_by_0", _png(0, 0)
    yield "png_0_high", _png(7, 0)
    yield "png_wrong_sum", _png(4, 4)[:-20] + b"\0\0\0\0" + _png(4, 4)[-16:]
    yield "png_two_heads", _png(4, 4, _chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)))
    yield "png_depth_7", _png(4, 4, bits=7)
    yield "png_no_palette", _png(4, 4, colour=3)
    yield "png_chunk_of_4_gib", _PNG + b"\xff\xff\xff\xffIHDR"
    yield "png_too_few_rows", _png(400, 4_000)
    yield "gif_no_frame", _gif((9, 9), (9, 9), frames=0)
    yield "gif_0_by_0", _gif((0, 0), (0, 0))
    yield "bmp_no_bits", _bmp(4, 4, bits=0)
    yield "bmp_3_bits", _bmp(4, 4, bits=3)
    yield "bmp_compression_99", _bmp(4, 4, compression=99)
    yield "bmp_negative", _bmp(-4, -4)
    yield "jpeg_0_by_0", b"\xff\xd8" + _segment(0xC0, struct.pack(">BHHB", 8, 0, 0, 1) + b"\1\x11\0")
    yield "jpeg_markers_only", b"\xff\xd8" + b"\xff\xd0" * 10_000 + b"\xff\xd9"
    yield "jpeg_fill_only", b"\xff\xd8" + b"\xff" * 1_000_000
    yield "jpeg_17_parts", b"\xff\xd8" + _segment(0xC0, struct.pack(">BHHB", 8, 8, 8, 17) + b"\1\x11\0" * 17)


def _strange() -> Iterator[tuple[str, bytes]]:
    """Yield files that some decoders read, or read as something else."""
    still = picture("JPEG", (64, 64))
    yield "cmyk", picture("JPEG", (64, 64), "CMYK")
    yield "grey_16_bit", _png(8, 8, bits=16, colour=0)
    yield "colour_16_bit", _png(8, 8, bits=16, colour=6)
    yield "one_bit", _png(8, 8, bits=1, colour=0)
    yield "palette", _png(8, 8, _chunk(b"PLTE", b"\xff" * 6), colour=3)
    yield "palette_seen_through", _png(8, 8, _chunk(b"PLTE", b"\xff" * 6), _chunk(b"tRNS", b"\0\x7f"), colour=3)
    yield (
        "palette_short",
        _png(8, 8, _chunk(b"PLTE", b"\xff" * 3), pixels=b"\0\xff\xff\xff\xff\xff\xff\xff\xff" * 8, colour=3),
    )
    yield "seen_through_wrongly", _png(8, 8, _chunk(b"tRNS", b"\0"))
    yield "exif_garbage", still[:2] + _segment(0xE1, b"Exif\0\0" + b"\xff" * 400) + still[2:]
    yield (
        "exif_loop",
        still[:2] + _segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0") + still[2:],
    )
    yield (
        "exif_9",
        still[:2] + _segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x09\0\0\0\0\0\0\0") + still[2:],
    )
    yield "many_exifs", still[:2] + _segment(0xE1, b"Exif\0\0" + b"\0" * 60_000) * 100 + still[2:]
    yield "profile_garbage", still[:2] + _segment(0xE2, b"ICC_PROFILE\0\1\1" + b"\xff" * 400) + still[2:]
    yield "mpo_garbage", still[:2] + _segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 200) + still[2:]
    yield "photoshop_garbage", still[:2] + _segment(0xED, b"Photoshop 3.0\x008BIM" + b"\xff" * 200) + still[2:]
    yield "adobe_garbage", still[:2] + _segment(0xEE, b"Adobe" + b"\xff" * 7) + still[2:]
    yield "zip_behind", still + b"PK\3\4" + b"\0" * 26 + b"PK\5\6" + b"\0" * 18
    yield "page_behind", picture("GIF") + b"<html><script>alert(1)</script>"
    yield "script_as_comment", picture("GIF")[:-1] + b"!\xfe\x08*/alert(\0;"
    yield "program_behind", picture("BMP") + b"\x7fELF" + bytes(60)
    yield "photo_cd_within", picture("WEBP", (64, 64)).ljust(2_048, b"\0") + b"PCD_" + bytes(4_000)
    yield "animated_gif", _gif((8, 8), (8, 8), frames=20_000)
    yield "animated_png", _png(8, 8, _chunk(b"acTL", struct.pack(">II", 2**31, 0)))
    yield "tall", _png(1, 64)
    yield "wide", _png(20_000, 1)
    yield "one_pixel", _png(1, 1)


def _largest() -> Iterator[tuple[str, bytes]]:
    """Yield pictures of as many pixels as are taken, in a few bytes; with a fourth channel fewer fit the bound."""
    see_through = (_chunk(b"PLTE", b"\0" * 6), _chunk(b"tRNS", b"\0\x7f"))
    yield "palette_seen_through", _png(8_000, 5_000, *see_through, bits=1, colour=3, pixels=bytes(5_000 * 1_001))
    yield "four_channels", _png(6_000, 4_000, colour=6, pixels=bytes(4_000 * 24_001))
    yield "three_channels", _png(8_000, 5_000, pixels=bytes(5_000 * 24_001))


def _not_pictures() -> Iterator[tuple[str, bytes]]:
    """Yield files of other formats, those among them that Pillow would hand to another program."""
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"
    yield "page", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n"
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "zip", b"PK\3\4" + bytes(100)
    yield "gzip", b"\x1f\x8b\x08" + bytes(100)
    yield "pickle", b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R."
    yield "program", b"\x7fELF" + bytes(100)
    yield "font", b"\0\1\0\0" + bytes(100)
    yield "url_file", b"[InternetShortcut]\nURL=http://127.0.0.1/\n"
    yield "msl", b'<image><read filename="/etc/passwd"/></image>'
    for kind in ("TIFF", "ICO", "PPM", "TGA", "PCX", "SGI", "JPEG2000", "DDS", "PDF", "EPS"):
        yield kind.lower(), picture(kind)


def files(_: Any) -> Iterator[Case]:
    """What a data URL may hold."""
    for kind, found, statuses in (
        ("bomb", _bombs(), REFUSED),
        ("damaged", _damaged(), EITHER),
        ("strange", _strange(), EITHER),
        ("largest", _largest(), TAKEN),
        ("other", _not_pictures(), REFUSED),
    ):
        for number, (name, data) in enumerate(found):
            path = LOOKING[number % len(LOOKING)]
            yield sent(f"{kind}_{name}", says(path, "look", data_url(data)), statuses, path, secret=data[13:45])
