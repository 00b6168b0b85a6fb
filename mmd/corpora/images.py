"""Pictures on their way into a corpus: found inside the corpus folder, checked, hashed and decoded once.

Checks go from cheap to dear: where the path leads, the file's size, the header's width and height, and only then the
pixels, since truncation shows nowhere else.
"""

# ruff: noqa: PTH114, PTH116, PTH117, PTH118, PTH123
# os.path on purpose: once a picture, building Path objects would cost more than the checks themselves.
from __future__ import annotations

import io
import os
import stat
import threading
import warnings

import PIL.Image

from mmd.corpora.base import ImageSource
from mmd.corpora.settings import LimitSettings
from mmd.errors import BadRecordError
from mmd.schema import Image, image_id

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
"""Pillow's names of what is decoded. Short on purpose: some of its other formats run external programs."""

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"RIFF", b"BM")
_REMOTE = ("http:", "https:", "ftp:", "s3:", "gs:")
_MEGA = 10**6
_SCANNED_MEGAPIXELS = 4_000  # of all scans of a JPEG; encoders write 1 to 20 scans, and 100 of 40 megapixels take 0.2 s
_MOST_READS = 50_000  # about 0.1 s; a PNG of 10 MB in blocks of 8 KiB takes 5,000
_KNOWN_MAX = 200_000  # about 40 MB of hashes and sizes a process
# Pillow warns of large pictures through the warnings module, whose filters belong to all threads.
_header_lock = threading.Lock()


def check_image(data: bytes, limits: LimitSettings) -> tuple[str, int, int]:
    """Decode an encoded picture to its last byte, after checking its size from the header.

    Of a JPEG the whole compressed stream is decoded, which is where truncation and damage show, but pixels are computed
    for the luma at an eighth of the size only: the verdict is that of a full decode at less than half its cost. Of an
    animation the first frame is decoded.

    Returns:
        Format (one of :data:`FORMATS`, or ``MPO``), width and height in pixels.

    Raises:
        BadRecordError: ``image_empty``, ``image_too_large``, ``not_an_image``, ``image_bomb`` or ``image_truncated``.
    """
    _check_bytes(len(data), limits)
    with _open_header(data) as picture:
        width, height = _checked_size(picture, limits)
        if picture.format in ("JPEG", "MPO"):
            _check_scans(data, width * height)
        try:
            picture.draft("L", (max(1, width // 8), max(1, height // 8)))  # does nothing to other formats
            picture.load()
        # Pillow's decoders raise whatever their parser stumbled over; the header was fine, so the rest is damaged.
        except (OSError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError, MemoryError) as err:
            raise BadRecordError("image_truncated", f"the pixels cannot be decoded to the end ({err})") from err
        return str(picture.format), width, height


def image_size(data: bytes, limits: LimitSettings) -> tuple[int, int]:
    """Return width and height in pixels as the header tells them, decoding none.

    Raises:
        BadRecordError: ``image_empty``, ``image_too_large``, ``not_an_image``, ``image_bomb`` or ``image_truncated``.
    """
    _check_bytes(len(data), limits)
    with _open_header(data) as picture:
        return _checked_size(picture, limits)


def _checked_size(picture: PIL.Image.Image, limits: LimitSettings) -> tuple[int, int]:
    width, height = picture.size
    if width * height == 0:
        raise BadRecordError("image_empty", f"the picture is {width} x {height} pixels")
    if width * height > limits.max_image_megapixels * _MEGA:
        raise BadRecordError(
            "image_bomb",
            f"{width} x {height} pixels; data.limits.max_image_megapixels allows {limits.max_image_megapixels:g}",
        )
    return width, height


def _check_scans(data: bytes, pixels: int) -> None:
    """Refuse a JPEG of very many scans: one that changes nothing takes 50 bytes, and a pass over all pixels."""
    scans = data.count(b"\xff\xda")  # among compressed pixels this marker cannot occur
    if scans * max(pixels, _MEGA) > _SCANNED_MEGAPIXELS * _MEGA:
        raise BadRecordError(
            "image_bomb", f"{scans} scans of {pixels / _MEGA:.1f} megapixels; save it as a baseline JPEG"
        )


def _check_bytes(size: int, limits: LimitSettings) -> None:
    if size == 0:
        raise BadRecordError("image_empty", "the picture has no bytes")
    if size > limits.max_image_mb * 2**20:
        raise BadRecordError(
            "image_too_large", f"{size / 2**20:.1f} MiB; data.limits.max_image_mb allows {limits.max_image_mb:g}"
        )


def open_picture(data: bytes) -> PIL.Image.Image:
    """Open a file as one of :data:`FORMATS`.

    Raises:
        BadRecordError: ``image_bomb``: it is in so many pieces that to step over them takes seconds. Also later, while
            pixels are read.
        Exception: Pillow's, where it is none of them or its head is damaged.
    """
    return PIL.Image.open(_CountedReader(data), formats=FORMATS)


class _CountedReader(io.BytesIO):
    """A file that can be read from only so often: Pillow walks through its pieces, a few bytes each, in Python."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = _MOST_READS

    def read(self, size: int | None = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise BadRecordError("image_bomb", "the file is in too many pieces (save it again)")
        return super().read(size)


def _open_header(data: bytes) -> PIL.Image.Image:
    try:
        with _header_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked against our own limit
            return open_picture(data)
    except PIL.Image.DecompressionBombError as err:
        raise BadRecordError("image_bomb", str(err)) from err
    except ValueError as err:  # a compressed text chunk that unpacks beyond Pillow's bound
        raise BadRecordError("image_bomb", f"the header unpacks to too much ({err})") from err
    except (OSError, SyntaxError, LookupError, TypeError, ArithmeticError, EOFError) as err:
        if data.startswith(_SIGNATURES):
            raise BadRecordError("image_truncated", f"the header breaks off or is damaged ({len(data)} bytes)") from err
        raise BadRecordError("not_an_image", f"none of {', '.join(FORMATS)}: starts with {data[:12]!r}") from err


class ImageLoader:
    """Loads the pictures of one corpus; equal bytes are decoded once for as long as the loader lives.

    Args:
        root: folder that paths are relative to and must stay inside; None when pictures come with the records.
        limits: of bytes and pixels.
    """

    def __init__(self, root: str | None, limits: LimitSettings) -> None:
        self.limits = limits
        self.decoded = 0  # pictures decoded, for throughput
        self._root = None if root is None else os.path.realpath(root)
        self._known: dict[str, tuple[str, int, int]] = {}
        self._folders: dict[str, str] = {}  # folder of a path → its real path

    def load(self, source: ImageSource) -> Image:
        """Read, hash and check one picture.

        Raises:
            BadRecordError: the picture cannot be used.
        """
        data = self._read(source)
        identity = image_id(data)
        found = self._known.get(identity)
        if found is None:
            found = check_image(data, self.limits)
            self.decoded += 1
            if len(self._known) < _KNOWN_MAX:
                self._known[identity] = found
        return Image(identity, *found, data=data, ocr=source.ocr, description=source.description)

    def _read(self, source: ImageSource) -> bytes:
        if source.data is not None:
            _check_bytes(len(source.data), self.limits)
            return source.data
        if source.path is None:
            raise BadRecordError("image_missing", "the record names neither a path nor bytes")
        path = self._inside(source.path)
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                raise BadRecordError("image_missing", f"{source.path}: is not a file")
            _check_bytes(status.st_size, self.limits)
            with open(path, "rb") as handle:
                return handle.read()
        except (OSError, ValueError) as err:
            reason = err.strerror if isinstance(err, OSError) else err
            raise BadRecordError("image_missing", f"{source.path}: cannot be read ({reason})") from err

    def _inside(self, path: str) -> str:
        """Return the real path, after following links; plain strings, since this runs once a picture."""
        if path.lower().startswith(_REMOTE):
            raise BadRecordError("remote_image", f"{path[:80]}: is not fetched; save the picture in the corpus folder")
        if self._root is None or os.path.isabs(path):
            raise BadRecordError("path_escape", f"{path}: must be relative to the corpus folder")
        folder, name = os.path.split(path)
        try:
            if folder not in self._folders:
                self._folders[folder] = os.path.realpath(os.path.join(self._root, folder))
            real = os.path.join(self._folders[folder], name)
            if name in {"", ".", ".."} or os.path.islink(real):
                real = os.path.realpath(real)
        except (OSError, ValueError) as err:
            raise BadRecordError("image_missing", f"{path!r}: is not a path ({err})") from err
        if not (real + os.sep).startswith(os.path.join(self._root, "")):
            raise BadRecordError("path_escape", f"{path}: leads out of the corpus folder")
        return real
