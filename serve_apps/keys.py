"""API keys: who may ask, and how often. Off unless ``serve.api_keys_file`` names a file.

The file has a line a key: the SHA-256 of the key, and a name for the log. A key is 256 random bits, so that its plain
hash cannot be turned back by guessing; ``mmd keys new`` makes one. A changed file is read anew, so that keys come and
go without a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
from starlette.datastructures import Headers

from mmd.config import ServeSettings
from mmd.errors import ConfigError
from serve_apps.api import ApiError

PUBLIC = frozenset({"/", "/try", "/sweeps", "/docs", "/openapi.json", "/healthz", "/readyz"})
"""Paths that need no key: the pages, the API document and the probes; nothing there answers a dialogue."""
PICTURES = "/v1/images/"
IMAGE_ID = re.compile(r"[0-9a-f]{64}")
PUBLIC_FOLDERS = ("/static/", PICTURES)
"""Files of the pages, and pictures: their names are hashes that only answers tell, and a page cannot send a key."""
_NOBODY = ""  # no key has this name: the bucket of all who ask for pictures without one
_LINE = re.compile(r"([0-9a-f]{64})\s+([A-Za-z0-9._-]{1,64})")
_LOOK_S = 1.0  # how often the file is looked at


def hash_key(key: str) -> str:
    """Return what is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> dict[str, str]:
    """Return hash → name of a file of keys.

    Raises:
        ConfigError: the file cannot be read, or a line is not a hash and a name.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"serve.api_keys_file: {path} cannot be read ({err}); make it with `mmd keys new`.") from err
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:  # the line is not told: it may be a key itself
            reason = "not a SHA-256 in hexadecimal and a name; make lines with `mmd keys new`."
            raise ConfigError(f"serve.api_keys_file: {path}, line {number}: {reason}")
        found[match[1]] = match[2]
    return found


class KeyRing:
    """The keys of a file, read anew when it changes.

    Args:
        path: of the file.

    Raises:
        ConfigError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: Mapping[str, str] = read_keys(path)
        self._seen = self._stamp()
        self._looked = time.monotonic()

    def name_of(self, key: str) -> str | None:
        """Return the name of a key, None for one that is not in the file; takes as long for any key."""
        self._look()
        given, found = hash_key(key), None
        for known, name in self._keys.items():
            if hmac.compare_digest(given, known):
                found = name
        return found

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        stamp = self._stamp()
        if stamp == self._seen:
            return
        try:
            self._keys = read_keys(self._path)
        except ConfigError as err:  # half written, say: the keys that were there go on
            structlog.get_logger("mmd.keys").error("keys_rejected", reason=str(err))
        else:
            self._seen = stamp

    def _stamp(self) -> tuple[int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size


class Buckets:
    """A token bucket a key: so many requests at once, refilled evenly.

    Args:
        per_minute: requests that come back in a minute.
        burst: that a bucket holds.
        clock: seconds.
    """

    def __init__(self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_minute / 60
        self._burst = burst
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # name → requests left, as of when

    def take(self, name: str) -> float:
        """Take one; return 0, or in how many seconds there will be one."""
        now = self._clock()
        left, since = self._left.get(name, (float(self._burst), now))
        left = min(float(self._burst), left + (now - since) * self._per_s)
        self._left[name] = (left - 1 if left >= 1 else left), now
        return 0.0 if left >= 1 else (1 - left) / self._per_s


class Admission:
    """Lets requests in that carry a known key, as often as the limits allow.

    Args:
        ring: known keys.
        buckets: how often each may ask.
    """

    def __init__(self, ring: KeyRing, buckets: Buckets) -> None:
        self._ring = ring
        self._buckets = buckets

    def __call__(self, headers: Headers, path: str) -> str | None:
        """Return the name of the key; None for paths that need none.

        Pictures take a place in the models' queues: who asks for them without a key shares one bucket with all others.

        Raises:
            ApiError: 401 without a known key, 429 where it has asked too often.
        """
        if path in PUBLIC or path.startswith(PUBLIC_FOLDERS):
            if IMAGE_ID.fullmatch(path.removeprefix(PICTURES)):  # what is no picture's id asks no model
                self._take(_NOBODY, "pictures have been asked for too often")
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        name = self._ring.name_of(key.strip()) if scheme.lower() == "bearer" and key.strip() else None
        if name is None:
            reason = "no valid API key; send the header Authorization: Bearer KEY (`mmd keys new` makes one)."
            raise ApiError(401, "invalid_api_key", reason)
        self._take(name, "this key has asked too often")
        return name

    def _take(self, name: str, refused: str) -> None:
        if wait_s := self._buckets.take(name):
            wait = math.ceil(wait_s)
            reason = f"{refused}; try again in {wait} s (serve.rate_limit_per_minute)."
            raise ApiError(429, "rate_limited", reason, retry_after_s=wait)


def admission(settings: ServeSettings) -> Admission | None:
    """Return what lets requests in; None where everybody may ask.

    Raises:
        ConfigError: the file of keys cannot be read.
    """
    if settings.api_keys_file is None:
        return None
    buckets = Buckets(settings.rate_limit_per_minute, settings.rate_limit_burst)
    return Admission(KeyRing(Path(settings.api_keys_file)), buckets)
