"""Pictures from the web, of hosts that the operator trusts alone: ``serve.image_hosts``, empty by default.

A service that fetches what a client names can be made to ask its own network (server-side request forgery). Therefore:
https on port 443 only; the host must be on the list, letter by letter; every address that its name resolves to must be
public, and the connection goes to one of those addresses, so that a second answer of the name server changes nothing;
redirects are not followed; and bytes, time and media type are limited. Proxies of the environment are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from urllib.parse import urlsplit

from mmd.config import ServeSettings
from serve_apps.api import ApiError

PORT = 443
_CHUNK = 1 << 16
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that has been given out (RFC 4291, 2.4)


def is_remote(url: str) -> bool:
    """Say whether a picture's address is on the web."""
    return url[:6].lower() in ("http:/", "https:")


def fetch_picture(url: str, where: str, limits: ServeSettings) -> bytes:
    """Return the bytes that a trusted host has under an address.

    Args:
        url: of the picture.
        where: path of its field, for error messages.
        limits: hosts, bytes, time.

    Raises:
        ApiError: 400 for an address that is not fetched, or from which no picture comes; 413 for too many bytes.
    """
    host, target = _checked(url, where, limits)
    until = time.monotonic() + limits.image_fetch_s
    address = _public_address(host, where)
    try:
        left_s = max(0.001, until - time.monotonic())  # the name server has no limit of its own
        with closing(open_connection(host, address, left_s)) as connection, _ended_by(until, connection, where):
            connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "mmd"})
            with closing(connection.getresponse()) as response:  # it may outlive its connection
                return _read(response, where, limits, until)
    except (OSError, http.client.HTTPException) as err:  # TLS errors and timeouts among them
        raise _refused(f"{host} gave no picture ({type(err).__name__})", where) from err


def _checked(url: str, where: str, limits: ServeSettings) -> tuple[str, str]:
    """Return the host and what to ask it for."""
    if not limits.image_hosts:
        raise _refused("pictures are not fetched from the network", where)
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or ""), parts.port
    except ValueError:
        raise _refused("not an address", where) from None
    if parts.scheme != "https" or port not in (None, PORT) or parts.username or parts.password:
        raise _refused("pictures are fetched by plain https addresses alone", where)
    if host not in map(str.lower, limits.image_hosts):
        raise _refused(f"pictures are fetched from {', '.join(limits.image_hosts)} alone", where)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii() or not target.isprintable() or " " in target:
        raise _refused("the address has characters that must be percent-encoded", where)
    return host, target


def _public_address(host: str, where: str) -> str:
    """Return an address of a host, all of which are public."""
    try:
        found = addresses_of(host)
    except OSError as err:
        raise _refused(f"{host} is not known to the name server", where) from err
    if not found or not all(map(_is_public, found)):
        raise _refused(f"{host} is not on the public network", where)
    return found[0]


def addresses_of(host: str) -> list[str]:
    """Return the addresses that the name server gives for a host."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)]


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address) and (found not in _GLOBAL_UNICAST or found.sixtofour):
        return False  # NAT64, 6to4 and the like carry any IPv4 address within
    return found.is_global and not found.is_multicast


def open_connection(host: str, address: str, timeout_s: float) -> http.client.HTTPConnection:
    """Return a TLS connection to an address; the certificate must be the host's."""
    connection = http.client.HTTPSConnection(host, PORT, timeout=timeout_s)
    plain = socket.create_connection((address, PORT), timeout_s)
    try:
        connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    except OSError:
        plain.close()
        raise
    return connection


@contextmanager
def _ended_by(until: float, connection: http.client.HTTPConnection, where: str) -> Iterator[None]:
    """End a connection in time, which may wait its own limit for every piece, and a head has many.

    Raises:
        ApiError: it was ended; what has come by then is cut off.
    """
    line, ended = connection.sock, threading.Event()

    def end() -> None:
        ended.set()
        with suppress(OSError):  # it has ended already
            socket.socket.shutdown(line, socket.SHUT_RDWR)  # not TLS's own, which this thread must not touch

    timer = threading.Timer(max(0.0, until - time.monotonic()), end)
    timer.daemon = True
    if line is not None:
        timer.start()
    try:
        yield
    except (ApiError, OSError, http.client.HTTPException):
        if not ended.is_set():
            raise
    finally:
        timer.cancel()
    if ended.is_set():
        raise _refused("the picture did not come in time", where)


def _read(response: http.client.HTTPResponse, where: str, limits: ServeSettings, until: float) -> bytes:
    if response.status != HTTPStatus.OK:
        raise _refused(f"the address answers HTTP {response.status}, and redirects are not followed", where)
    media = (response.getheader("Content-Type") or "").partition(";")[0].strip().lower()
    if not media.startswith("image/"):
        raise _refused(f"the address has no picture but {media[:40] or 'something without a type'}", where)
    most, data = int(limits.max_image_mb * 2**20), bytearray()
    while chunk := response.read1(_CHUNK):
        data += chunk
        if len(data) > most:
            message = f"{where}: more than {limits.max_image_mb:g} MiB; scale the picture down."
            raise ApiError(413, "image_too_large", message, where)
        if time.monotonic() > until:
            raise _refused("the picture did not come in time", where)
    return bytes(data)


def _refused(why: str, where: str) -> ApiError:
    return ApiError(400, "remote_image", f"{where}: {why}. Send the picture itself as a data URL.", where)
