"""What stands where a picture's address should: places nobody shall be sent to, data URLs that lie."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from tests.serve_apps.hostile_case import (
    EITHER,
    INTENT,
    LOOKING,
    RECOMMEND,
    REFUSED,
    TAKEN,
    Case,
    picture,
    says,
    sent,
)

TRUSTED = "pictures.example"

_ADDRESSES = (
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://localhost:8265/api/jobs/",
    "http://127.0.0.1:6379/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://017700000001/",
    "http://0.0.0.0:8000/metrics",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[fe80::1%25eth0]/",
    "http://10.0.0.1@127.0.0.1/",
    "http://example.com#@127.0.0.1/",
    "http://127.0.0.1.nip.io/",
    "http:\\\\127.0.0.1\\",
    "http:127.0.0.1",
    "hTtPs://example.com/a.png",
    "https://example.com/a.png\r\nhost: 127.0.0.1",
    "http://example.com/%0d%0aset-cookie:x",
    "//127.0.0.1/a.png",
    " http://127.0.0.1/",
    "\thttp://127.0.0.1/",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "FILE:/etc/passwd",
    "/etc/passwd",
    "../../../../etc/passwd",
    "\\\\127.0.0.1\\share\\a.png",
    "C:\\Windows\\win.ini",
    "ftp://127.0.0.1/a.png",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "dict://127.0.0.1:11211/stats",
    "ldap://127.0.0.1/",
    "jar:http://127.0.0.1/a.jar!/a.png",
    "s3://bucket/key",
    "gs://bucket/key",
    "hdfs://127.0.0.1/a.png",
    "javascript:alert(1)",
    "blob:https://example.com/1",
    "about:blank",
    "view-source:http://127.0.0.1/",
    "php://filter/resource=/etc/passwd",
    "\x00",
    "\ud800",
    "\u202edata:image/png;base64,AAAA",
    "x" * 1_000_000,
)


def addresses(_: Any) -> Iterator[Case]:
    """Where a picture should be: places that nobody shall be sent to."""
    for number, url in enumerate(_ADDRESSES):
        for path in LOOKING:
            yield sent(f"{number}_{url[:40]!a}_{path}", says(path, "look", url), REFUSED, path)
        # /v1/recommend reads no pictures, and fetches none either.
        yield sent(f"{number}_{url[:40]!a}_{RECOMMEND}", says(RECOMMEND, "look", url), EITHER, RECOMMEND)


_NEAR = (
    f"http://{TRUSTED}/a.png",
    f"https://{TRUSTED}:80/a.png",
    f"https://{TRUSTED}:22/a.png",
    f"https://{TRUSTED}:99999/a.png",
    f"https://{TRUSTED}:-1/a.png",
    f"https://{TRUSTED}:\u0664\u0664\u0663/a.png",
    f"https://{TRUSTED}./a.png",
    f"https://{TRUSTED}.evil.example/a.png",
    f"https://evil-{TRUSTED}/a.png",
    f"https://a.{TRUSTED}/a.png",
    f"https://{TRUSTED}@evil.example/a.png",
    f"https://{TRUSTED}:443@evil.example/a.png",
    f"https://user@{TRUSTED}/a.png",
    f"https://user:word@{TRUSTED}/a.png",
    f"https://evil.example#@{TRUSTED}/a.png",
    f"https://evil.example?@{TRUSTED}/a.png",
    f"https://evil.example\\@{TRUSTED}/a.png",
    f"https://{TRUSTED}\\@evil.example/a.png",
    f"https://{TRUSTED}%00.evil.example/a.png",
    f"https://{TRUSTED}\x00.evil.example/a.png",
    f"https://{TRUSTED}%2f@evil.example/a.png",
    f"https:/{TRUSTED}/a.png",
    f"https:{TRUSTED}/a.png",
    f"https:///{TRUSTED}/a.png",
    f"https:\\\\{TRUSTED}\\a.png",
    f"https://[{TRUSTED}]/a.png",
    f"https://[::ffff:127.0.0.1]/{TRUSTED}",
    f"https://127.0.0.1/{TRUSTED}",
    f"https://{TRUSTED.replace('e', chr(0x435), 1)}/a.png",
    f"https://{TRUSTED.replace('.', chr(0x3002))}/a.png",
    f"https://{TRUSTED.replace('p', chr(0xFF50), 1)}.evil.example/a.png",
    f"https://{TRUSTED}/a b.png",
    f"https://{TRUSTED}/\u00e9.png",
    f"https://{TRUSTED}/\x7f.png",
    f"https://{TRUSTED}/ HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    f"https://{TRUSTED}/\ud800",
    f"https://{'a' * 70_000}.{TRUSTED}/",
)


def fetching(_: Any) -> Iterator[Case]:
    """The same where one host is trusted, and addresses that look as if they were its own: nobody is asked."""
    for number, url in enumerate((*_ADDRESSES, *_NEAR)):
        path = LOOKING[number % len(LOOKING)]
        yield sent(f"{number}_{url[:40]!a}_{path}", says(path, "look", url), REFUSED, path, service="fetching")


def data_urls(_: Any) -> Iterator[Case]:
    """Data URLs whose heads or payloads are not what they should be."""
    sound = base64.b64encode(picture("PNG") + b"\xfb\xff\xfb\xff").decode()  # all signs of the alphabet
    script = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>").decode()
    refused = {
        "no_comma": f"data:image/png;base64{sound}",
        "no_media_type": f"data:;base64,{sound}",
        "nothing": "data:",
        "comma_only": "data:,",
        "half_a_type": f"data:image;base64,{sound}",
        "wildcard": f"data:image/*;base64,{sound}",
        "tiff": f"data:image/tiff;base64,{sound}",
        "eps": f"data:image/x-eps;base64,{base64.b64encode(b'%!PS-Adobe-3.0 EPSF-3.0').decode()}",
        "svg": f"data:image/svg+xml;base64,{script}",
        "svg_in_png": f"data:image/png;base64,{script}",
        "html": f"data:text/html;base64,{script}",
        "xml": f"data:application/xml;base64,{script}",
        "json": "data:application/json;base64,e30=",
        "percent": "data:image/png,%89PNG%0D%0A%1A%0A",
        "percent_base64": "data:image/png;base64," + sound.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        "url_alphabet": f"data:image/png;base64,{sound.replace('+', '-').replace('/', '_')}-_",
        "charset": f"data:image/png;charset=utf-8;base64,{sound}",
        "base64_twice": f"data:image/png;base64;base64,{sound}",
        "spaces_in_head": f"data: image/png; base64,{sound}",
        "space_before": f" data:image/png;base64,{sound}",
        "line_breaks": "data:image/png;base64," + "\r\n".join(sound[i : i + 20] for i in range(0, len(sound), 20)),
        "padding_only": "data:image/png;base64,====",
        "padding_within": "data:image/png;base64,AA==AAAA",
        "not_ascii": "data:image/png;base64,\u00e9\u00e9\u00e9\u00e9",
        "full_width": "data:image/png;base64,\uff21\uff21\uff21\uff21",
        "half": "data:image/png;base64,\ud800AAA",
        "nul": "data:image/png;base64,\0\0\0\0",
        "nested": "data:image/png;base64," + base64.b64encode(f"data:image/png;base64,{sound}".encode()).decode(),
        "comma_first": f"data:image/png,;base64,{sound}",
        "long_head": f"data:image/{'x' * 1_000_000};base64,{sound}",
        "long_parameter": f"data:image/png;{'x' * 1_000_000};base64,{sound}",
        "script_in_head": "data:<script>alert(1)</script>;base64,AAAA",
        "fragment": f"data:image/png;base64,{sound}#x",
    }
    for number, (name, url) in enumerate(refused.items()):
        path = LOOKING[number % len(LOOKING)]
        yield sent(name, says(path, "", url), REFUSED, path)
    yield sent("too_much_padding", says(INTENT, "", f"data:image/png;base64,{sound}========"), EITHER)
    yield sent("loud", says(INTENT, "", f"DATA:IMAGE/PNG;BASE64,{sound}"), TAKEN)
    yield sent("jpeg_that_is_png", says(INTENT, "", f"data:image/jpeg;base64,{sound}"), EITHER)
