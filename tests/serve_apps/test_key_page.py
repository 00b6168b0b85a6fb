"""Pages of a service that wants an API key: they ask for it once, and it stays in the tab."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from mmd.config import ServeSettings
from serve_apps.keys_cli import add_key

pytestmark = pytest.mark.browser


@pytest.fixture
def keyed(tmp_path: Path, full_backend: Any, serving: Callable[..., str]) -> tuple[str, str]:
    """The address of a service with keys, and a key."""
    key = add_key(tmp_path / "keys.txt", "shop")
    return serving(full_backend, ServeSettings(api_keys_file=str(tmp_path / "keys.txt"))), key


def test_the_chat_page_asks_for_a_key_and_goes_on_with_it(
    keyed: tuple[str, str], opened: Callable[..., AbstractContextManager[Any]]
):
    url, key = keyed
    with opened(url) as page:
        page.wait_for_selector("#key-form:not([hidden])")  # examples want one already
        page.fill("#key", "mmd-wrong")
        page.click("#key-form button")
        page.wait_for_selector("#key-form:not([hidden])")  # asked again
        page.fill("#text", "Where is my refund?")
        page.keyboard.press("Enter")
        page.wait_for_selector(".problem")
        page.fill("#key", key)
        page.click("#key-form button")
        page.wait_for_selector("#key-form", state="hidden")
        page.click(".problem button")  # try again
        page.wait_for_selector(".message.assistant.done .said, .message.done .said")
        page.reload()
        page.wait_for_selector("#welcome .examples button")  # the tab has kept it
        assert not page.is_visible("#key-form")
        assert key not in page.evaluate("JSON.stringify(localStorage) + document.cookie")


def test_the_page_of_all_parts_asks_for_a_key(
    keyed: tuple[str, str], opened: Callable[..., AbstractContextManager[Any]]
):
    url, key = keyed
    with opened(f"{url}try") as page:
        page.wait_for_selector("#key-form:not([hidden])")
        assert page.locator("#task option").count() == 1
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-form", state="hidden")
        page.wait_for_function("document.querySelectorAll('#task option').length > 1")
