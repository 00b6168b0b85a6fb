"""The chat page in a real browser: what a person sees, hears and can do, over the contract of /v1/chat/completions."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mmd.config import ServeSettings

Open = Callable[..., AbstractContextManager[Any]]

pytestmark = pytest.mark.browser

LIMITS = ServeSettings(max_images=2, max_image_mb=0.3, max_turns=4)

# Conversations go to the test instead of the service: what was asked is kept, and the test says when what is answered.
WIRE = """(() => {
  const real = window.fetch;
  window.asked = [];
  window.aborted = 0;
  window.refusal = null;
  window.fetch = (url, options) => {
    if (!String(url).endsWith("v1/chat/completions")) return real(url, options);
    window.asked.push(JSON.parse(options.body));
    if (window.refusal) {
      const { status, headers, error } = window.refusal;
      return Promise.resolve(new Response(JSON.stringify({ error }), { status, headers }));
    }
    const body = new ReadableStream({
      start(wire) {
        window.push = (text) => wire.enqueue(new TextEncoder().encode(text));
        window.hangUp = () => wire.close();
        options.signal.addEventListener("abort", () => {
          window.aborted += 1;
          wire.error(options.signal.reason);
        });
      },
    });
    return Promise.resolve(new Response(body, { headers: { "Content-Type": "text/event-stream" } }));
  };
})();"""

MUG = {"item_id": "7", "title": "Blue mug", "url": None}
RULE = {
    "id": "r1",
    "label": "product_question",
    "words": {"en": "a message contains “mug”", "zh": "对话里有“mug”"},
    "precision": 0.875,
    "wilson_lower": 0.6,
    "support": 8,
}
INTENT = {
    "task": "dialogue_intent",
    "label": "product_question",
    "confidence": 0.83,
    "arm": "vote",
    "mllm_share": 0.0,
    "fired": [RULE],
    "alternatives": [{"label": "product_question", "probability": 0.78}],
}
HOW = {
    "request_id": "abc",
    "parts": [{"kind": "text", "text": "Take the Blue mug."}, {"kind": "item", **MUG}],
    "intents": [INTENT],
    "decisions": [
        {
            "step": "speaker",
            "choice": "student",
            "reason": {"en": "The student recommends.", "zh": "由学生模型推荐。"},
            "confidence": 0.82,
        }
    ],
    "retrieved": [{"id": "text:1", "modality": "text", "title": "Yes.", "text": "Yes.", "score": 0.9, "image": None}],
    "recommended": [{"id": "7", "title": "Blue mug", "score": 0.61, "named": True, "image": None}],
    "mode": {"name": "rec", "probability": 0.82},
    "trace": [{"token": "Take", "mass": 0.1, "is_item": False}, {"token": "Blue mug", "mass": 0.9, "is_item": True}],
    "timings_ms": {"intent": 10.0, "retrieval": 20.0, "retrieval.search": 3.0, "policy": 0.5, "total": 40.0},
    "degraded": [],
    "artifacts": {"student": "student/tiny@1"},
    "ignored": [],
}


class Chat:
    """The page, and the service at the other end of the wire."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def write(self, text: str) -> None:
        self.page.locator("#text").fill(text)
        self.page.keyboard.press("Enter")

    def send(self, data: object) -> None:
        self.page.evaluate("(text) => push(text)", f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n")

    def say(self, text: str, span: dict[str, Any] | None = None) -> None:
        extra = {"mmd": {"span": span}} if span else {}
        self.send({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **extra})

    def end(self, **how: Any) -> None:
        choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
        self.send({"id": "chatcmpl-abc", "model": "mmd/tiny", "choices": [choice], "mmd": {**HOW, **how}})
        self.send("[DONE]")  # nothing is read behind it
        self.page.wait_for_selector("#send:not([hidden])")

    def answer(self, text: str = "Yes.", **how: Any) -> None:
        self.page.wait_for_selector(".message.waiting")
        self.say(text)
        self.end(**{"parts": [{"kind": "text", "text": text}], **how})

    @property
    def asked(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.page.evaluate("asked")
        return found

    def refuse(self, status: int, message: str, **headers: str) -> None:
        error = {"message": message, "type": "x", "param": None, "code": "x"}
        self.page.evaluate("(it) => { refusal = it }", {"status": status, "headers": headers, "error": error})

    def accept(self) -> None:
        self.page.evaluate("() => { refusal = null }")


@pytest.fixture
def url(backend: Any, serving: Callable[..., str]) -> str:
    return serving(backend, LIMITS)


@pytest.fixture
def chat(opened: Open, url: str) -> Iterator[Chat]:
    with opened(url, WIRE, viewport={"width": 360, "height": 740}) as page:
        page.wait_for_selector("#welcome .examples button")
        page.wait_for_selector("#limits:not(:empty)")
        yield Chat(page)


@pytest.fixture
def wide_chat(opened: Open, url: str) -> Iterator[Chat]:
    with opened(url, WIRE, viewport={"width": 1280, "height": 800}) as page:
        page.wait_for_selector("#welcome .examples button")
        yield Chat(page)


def picture(side_px: int, kind: str = "png") -> bytes:
    """Return a picture of noise, which no format makes small."""
    noise = np.random.default_rng(0).integers(0, 255, (side_px, side_px, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def blank(width_px: int, height_px: int) -> bytes:
    """Return a picture of many pixels and few bytes."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width_px, height_px), "teal").save(buffer, "png")
    return buffer.getvalue()


def size_of(url: str) -> tuple[int, int]:
    """Return width and height of the picture in a data URL."""
    return PIL.Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size


def file(name: str, data: bytes, kind: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": kind, "buffer": data}


def give(page: Any, way: str, name: str, kind: str) -> None:
    """Drop or paste a file."""
    page.locator("#text").evaluate(
        """(node, [way, name, type]) => {
            const files = new DataTransfer()
            files.items.add(new File(["x"], name, { type }))
            const event = way === "drop"
                ? new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: files })
                : new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData: files })
            node.dispatchEvent(event)
        }""",
        [way, name, kind],
    )


# ---------------------------------------------------------------- a conversation


def test_words_and_products_appear_while_they_are_said(chat: Chat):
    chat.write("A mug, please")
    chat.page.wait_for_selector(".message.waiting")
    chat.say("Take the ")
    assert chat.page.locator(".speaking .said").inner_text().strip() == "Take the"
    chat.say("Blue mug", MUG)
    assert chat.page.locator(".speaking mark").inner_text() == "Blue mug"
    assert chat.page.locator(".speaking .card-title").inner_text() == "Blue mug"
    chat.say(".")
    chat.end()
    assert chat.page.locator(".assistant .said").inner_text() == "Take the Blue mug."
    assert chat.page.locator(".card").count() == 1
    assert chat.page.locator("#announce").inner_text() == "Assistant: Take the Blue mug."


def test_the_whole_conversation_goes_along_with_each_message(chat: Chat):
    chat.write("Hello")
    chat.answer("Hello, what is it?")
    chat.write("A mug")
    chat.answer()
    body = chat.asked[1]
    assert body["stream"] is True
    assert body["mmd"]["language"] == "en"
    assert body["messages"] == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello, what is it?"},
        {"role": "user", "content": "A mug"},
    ]


def test_what_does_not_fit_into_a_request_is_left_out_oldest_first_and_that_is_said(chat: Chat):
    for number in range(3):
        chat.write(f"Question {number}")
        chat.answer(f"Answer {number}")
    contents = [message["content"] for message in chat.asked[2]["messages"]]
    assert contents == ["Answer 0", "Question 1", "Answer 1", "Question 2"]  # max_turns
    assert "left out" in chat.page.locator(".foot").last.inner_text()


def test_a_reply_that_is_stopped_keeps_what_was_said_and_can_be_asked_again(chat: Chat):
    chat.write("A mug, please")
    chat.page.wait_for_selector(".message.waiting")
    chat.say("Well, ")
    chat.page.get_by_role("button", name="Stop").click()
    chat.page.wait_for_selector(".message.stopped")
    assert chat.page.locator(".stopped .said").inner_text().strip() == "Well,"
    assert chat.page.locator("#text").evaluate("node => node === document.activeElement")
    chat.page.get_by_role("button", name="Try again").click()
    chat.answer("Take this.")
    assert chat.page.locator(".assistant .said").all_inner_texts() == ["Take this."]
    assert chat.asked[1]["messages"] == chat.asked[0]["messages"]


def test_escape_stops_a_reply(chat: Chat):
    chat.write("A mug, please")
    chat.page.wait_for_selector(".message.waiting")
    chat.page.keyboard.press("Escape")
    chat.page.wait_for_selector(".message.stopped")
    assert chat.page.locator(".message.waiting").count() == 0


def test_a_reply_of_a_picture_alone_is_its_card(chat: Chat):
    chat.write("Show me")
    part = {"kind": "image", "image_id": "a" * 64, "url": "/static/icon.svg", "title": "a red mug"}
    chat.answer("a red mug", parts=[part])
    assert chat.page.locator(".assistant .said").count() == 0
    assert chat.page.locator("figcaption").inner_text() == "a red mug"
    assert chat.page.locator(".card img").evaluate("node => node.decode().then(() => node.naturalWidth)") > 0


def test_a_new_conversation_begins_empty_and_the_last_one_can_be_had_back(chat: Chat):
    chat.write("Hello")
    chat.answer("Hello!")
    chat.page.get_by_role("button", name="New conversation").click()
    assert chat.page.locator(".message").count() == 0
    chat.page.get_by_role("button", name="Back to the last conversation").click()
    assert chat.page.locator(".message .said").all_inner_texts() == ["Hello", "Hello!"]


def test_an_example_is_asked_up_to_its_last_customer_turn(chat: Chat):
    chat.page.locator(".examples button").first.click()
    chat.answer()
    assert chat.asked[0]["messages"][-1]["role"] == "user"
    assert any(isinstance(message["content"], list) for message in chat.asked[0]["messages"])


# ---------------------------------------------------------------- what goes wrong


def test_a_busy_service_is_told_and_asked_again(chat: Chat):
    chat.refuse(429, "too many requests", **{"Retry-After": "2"})
    chat.write("A mug, please")
    chat.page.wait_for_selector(".message.failed")
    assert chat.page.get_by_role("alert").filter(has_text="busy").inner_text() == (
        "The service is busy. Try again in 2 s."
    )
    chat.accept()
    chat.page.get_by_role("button", name="Try again").click()
    chat.answer("Take this.")
    assert chat.page.locator(".failed").count() == 0


def test_a_message_that_is_refused_can_be_edited_but_not_sent_again_as_it_is(chat: Chat):
    chat.refuse(400, "9 characters; at most 5 are taken.")
    chat.write("Much text")
    chat.page.wait_for_selector(".message.failed")
    assert "at most 5" in chat.page.locator(".failed [role=alert]").inner_text()
    assert chat.page.get_by_role("button", name="Try again").count() == 0
    chat.page.get_by_role("button", name="Edit message").click()
    assert chat.page.locator("#text").input_value() == "Much text"
    assert chat.page.locator(".message").count() == 0


def test_only_the_last_reply_can_be_asked_again_so_that_nothing_later_is_lost(chat: Chat):
    chat.refuse(429, "too many requests", **{"Retry-After": "2"})
    chat.write("A mug, please")
    chat.page.wait_for_selector(".message.failed")
    assert chat.page.locator(".problem button").all_inner_texts() == ["Try again", "Edit message"]
    chat.accept()
    chat.write("A cup, then")
    chat.page.wait_for_selector(".message.waiting")
    assert chat.page.locator(".problem button").count() == 0
    chat.answer("Take this.")
    assert chat.page.locator(".problem button").count() == 0
    assert chat.page.locator(".failed [role=alert]").is_visible()


@pytest.mark.parametrize("name", ["Try again", "Edit message"])
def test_a_reply_that_is_taken_back_is_stopped_first(chat: Chat, name: str):
    """The button was there when it was aimed at; meanwhile another reply has begun."""
    chat.refuse(429, "too many requests", **{"Retry-After": "2"})
    chat.write("A mug, please")
    button = chat.page.get_by_role("button", name=name).element_handle()
    chat.accept()
    chat.write("A cup, then")
    chat.page.wait_for_selector(".message.waiting")
    button.evaluate("node => node.click()")
    assert chat.page.evaluate("aborted") == 1
    assert chat.page.locator(".message.waiting").count() == (name == "Try again")
    assert chat.page.locator("#send").is_visible() == (name == "Edit message")


def test_a_message_that_was_refused_for_good_stays_on_show_and_out_of_later_ones(chat: Chat):
    chat.refuse(400, "a picture that cannot be decoded.")
    chat.page.locator("#files").set_input_files(file("a.png", picture(20)))
    chat.page.wait_for_selector("#composer .pictures li")
    chat.write("What is this?")
    chat.page.wait_for_selector(".message.failed")
    chat.accept()
    for number, text in enumerate(["A mug, please", "And a cup"]):
        chat.write(text)
        chat.answer(f"Answer {number}")
    contents = [message["content"] for message in chat.asked[2]["messages"]]
    assert contents == ["A mug, please", "Answer 0", "And a cup"]
    assert chat.page.locator(".user .said").all_inner_texts() == ["What is this?", "A mug, please", "And a cup"]
    assert chat.page.locator(".user img").count() == 1
    assert "left out" not in chat.page.locator(".foot").last.inner_text()


def test_a_message_that_may_do_better_later_goes_with_the_next(chat: Chat):
    chat.refuse(503, "a model is being replaced.")
    chat.write("A mug, please")
    chat.page.wait_for_selector(".message.failed")
    chat.accept()
    chat.write("Hello?")
    chat.answer()
    assert [m["content"] for m in chat.asked[1]["messages"]] == ["A mug, please", "Hello?"]


@pytest.mark.parametrize("told", [True, False])
def test_a_reply_that_breaks_off_says_so(chat: Chat, told: bool):  # noqa: FBT001 (a case of the test)
    chat.write("A mug, please")
    chat.page.wait_for_selector(".message.waiting")
    chat.say("Let me ")
    if told:
        chat.send({"error": {"message": "the service failed.", "type": "x", "param": None, "code": "x"}})
    else:
        chat.page.evaluate("hangUp()")
    chat.page.wait_for_selector(".message.failed")
    expected = "the service failed." if told else "The reply broke off."
    assert chat.page.locator(".failed [role=alert]").inner_text() == expected
    assert chat.page.locator(".failed .said").inner_text().strip() == "Let me"


def test_an_answer_without_a_part_says_which(chat: Chat):
    chat.write("A mug, please")
    chat.answer(degraded=["recommendation: a model is being replaced."], mode=None, trace=[], recommended=[])
    assert chat.page.locator(".lacking").inner_text() == "without a part"
    chat.page.get_by_role("button", name="Why?").click()
    assert "a model is being replaced" in chat.page.locator("#why .note").inner_text()


def test_what_the_service_says_is_text_and_loads_nothing_from_elsewhere(chat: Chat):
    """The fixture fails on requests to other hosts."""
    evil = "<img src=x onerror=alert(1)>"
    urls = ["https://evil.example/a.png", "//evil.example/b.png", "javascript:alert(1)", "blob:https://evil.example/c"]
    chat.write(evil)
    parts = [{"kind": "item", "item_id": str(n), "title": evil, "url": url} for n, url in enumerate(urls)]
    chat.answer(evil, parts=[{"kind": "text", "text": evil}, *parts])
    assert chat.page.locator(".said").all_inner_texts() == [evil, evil]
    assert chat.page.locator(".card").count() == len(urls)
    assert chat.page.locator("#log img").count() == 0


# ---------------------------------------------------------------- pictures


def test_a_picture_is_shown_removed_and_sent(chat: Chat):
    chat.page.locator("#files").set_input_files([file("a.png", picture(20)), file("b.png", picture(24))])
    chat.page.wait_for_selector("#composer .pictures li:nth-child(2)")
    chat.page.get_by_label("Remove picture a.png").click()
    chat.write("What is this?")
    chat.answer()
    text, image = chat.asked[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is this?"}
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert chat.page.locator(".user img").get_attribute("alt") == "Picture b.png"
    assert chat.page.locator("#composer .pictures li").count() == 0


def test_a_picture_above_the_limit_is_scaled_down(chat: Chat):
    large = picture(600)
    assert len(large) > LIMITS.max_image_mb * 2**20
    chat.page.locator("#files").set_input_files(file("large.png", large))
    chat.page.wait_for_selector("#composer .pictures img")
    chat.write("What is this?")
    chat.answer()
    url = chat.asked[0]["messages"][0]["content"][1]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    assert len(url) * 3 / 4 <= LIMITS.max_image_mb * 2**20


@pytest.mark.parametrize(
    "limits",
    [
        ServeSettings(max_images=2, max_image_megapixels=0.06),
        ServeSettings(max_images=2, max_request_megapixels=0.12),
    ],
    ids=["of one picture", "of all together"],
)
def test_pictures_of_too_many_pixels_are_scaled_down_whatever_their_bytes(
    opened: Open, backend: Any, serving: Callable[..., str], limits: ServeSettings
):
    """0.06 megapixels at 4 to 3 are 282.8 x 212.1; what has fewer goes as it is."""
    with opened(serving(backend, limits), WIRE) as page:
        chat = Chat(page)
        page.locator("#files").set_input_files([file("a.png", blank(400, 300)), file("b.png", blank(280, 210))])
        page.wait_for_selector("#composer .pictures li:nth-child(2)")
        chat.write("")
        chat.answer()
        large, small = [part["image_url"]["url"] for part in chat.asked[0]["messages"][0]["content"]]
    assert (large[:15], size_of(large)) == ("data:image/jpeg", (282, 212))
    assert (small[:14], size_of(small)) == ("data:image/png", (280, 210))


def test_the_limits_are_told_before_and_when_they_are_passed(chat: Chat):
    assert chat.page.locator("#limits").inner_text().startswith("Up to 2 pictures of 0.3 MiB")
    chat.page.locator("#files").set_input_files([file(f"{n}.png", picture(8)) for n in range(3)])
    chat.page.wait_for_selector("#error:not([hidden])")
    assert chat.page.locator("#error").inner_text() == "At most 2 pictures go into one message."
    assert chat.page.locator("#composer .pictures li").count() == 2


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_file_that_is_no_picture_is_explained(chat: Chat, way: str):
    give(chat.page, way, "a.pdf", "application/pdf")
    chat.page.wait_for_selector("#error:not([hidden])")
    assert chat.page.locator("#error").inner_text().startswith("a.pdf is not a picture that can be read")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_is_added_by_drop_and_paste_once(chat: Chat, way: str):
    give(chat.page, way, "a.png", "image/png")
    chat.page.wait_for_selector("#composer .pictures li")
    assert chat.page.locator("#composer .pictures li").count() == 1


def test_older_pictures_are_left_out_where_a_request_holds_no_more(chat: Chat):
    for number in range(3):
        chat.page.locator("#files").set_input_files(file(f"{number}.png", picture(8 + number)))
        chat.page.wait_for_selector("#composer .pictures li")
        chat.write("")
        chat.answer()
    sent = [part for message in chat.asked[2]["messages"] for part in message["content"] if isinstance(part, dict)]
    assert len(sent) == LIMITS.max_images


# ---------------------------------------------------------------- why


def test_the_drawer_tells_rules_decisions_trace_and_times_in_words(wide_chat: Chat):
    wide_chat.write("A mug, please")
    wide_chat.answer()
    why = wide_chat.page.get_by_role("button", name="Why?")
    why.click()
    drawer = wide_chat.page.locator("#why")
    told = drawer.inner_text()
    for words in ("The student recommends.", "82 % sure", "a message contains “mug”", "product question", "Recommends"):
        assert words in told
    assert drawer.locator(".token").all_inner_texts() == ["Take", "Blue mug"]
    assert drawer.get_by_label("find responses: 20.0 ms").is_visible()
    assert why.get_attribute("aria-expanded") == "true"
    wide_chat.page.locator("#language").select_option("zh")
    assert "由学生模型推荐。" in drawer.inner_text()
    assert "对话里有“mug”" in drawer.inner_text()


@pytest.mark.parametrize("width", [360, 1280])
def test_the_drawer_is_opened_and_closed_by_keyboard_and_gives_the_focus_back(opened: Open, url: str, width: int):
    with opened(url, WIRE, viewport={"width": width, "height": 800}) as page:
        chat = Chat(page)
        page.wait_for_selector("#limits:not(:empty)")
        chat.write("A mug, please")
        chat.answer()
        page.get_by_role("button", name="Why?").focus()
        page.keyboard.press("Enter")
        assert page.locator("#why-title").evaluate("node => node === document.activeElement")
        page.keyboard.press("Escape")
        page.wait_for_selector("#why", state="hidden")
        assert page.locator(".why").evaluate("node => node === document.activeElement")


# ---------------------------------------------------------------- for everybody


def test_the_language_is_kept(chat: Chat):
    chat.page.locator("#language").select_option("zh")
    assert chat.page.locator("h1").text_content().strip() == "购物助手"
    chat.page.reload()
    assert chat.page.locator("#send").inner_text() == "发送"
    assert chat.page.locator("html").get_attribute("lang") == "zh-Hans"
    chat.write("你好")
    chat.answer("您好！")
    assert chat.asked[0]["mmd"]["language"] == "zh"


def test_enter_that_ends_a_composition_sends_nothing(chat: Chat):
    chat.page.locator("#text").fill("ni hao")
    event = {"key": "Enter", "bubbles": True, "isComposing": True}
    chat.page.locator("#text").evaluate("(n, it) => n.dispatchEvent(new KeyboardEvent('keydown', it))", event)
    assert chat.asked == []


def test_nothing_overflows_a_small_phone(chat: Chat):
    chat.write("A mug, please " + "x" * 80)
    chat.answer("y" * 120, parts=[{"kind": "text", "text": "y" * 120}, {"kind": "item", **MUG, "title": "Mug" * 30}])
    fits = "document.documentElement.scrollWidth <= window.innerWidth"
    assert chat.page.evaluate(fits)
    chat.page.get_by_role("button", name="Why?").click()
    assert chat.page.locator("#why").evaluate("node => node.scrollWidth <= node.clientWidth")


def test_every_control_has_a_name_and_what_matters_is_announced(chat: Chat):
    chat.write("A mug, please")
    chat.answer()
    nameless = chat.page.evaluate(
        """() => [...document.querySelectorAll("button, select, textarea, input:not([hidden])")]
            .filter((n) => !(n.getAttribute("aria-label") || n.textContent.trim() || n.labels?.length))
            .map((n) => n.outerHTML)"""
    )
    assert nameless == []
    assert chat.page.locator("#announce").get_attribute("role") == "status"
    assert chat.page.locator("#announce").inner_text() == "Assistant: Yes."


def test_the_page_leads_to_the_others(wide_chat: Chat):
    wide_chat.page.get_by_role("link", name="Try each part").click()
    wide_chat.page.wait_for_selector("#turns textarea")
    assert wide_chat.page.url.endswith("/try")
    wide_chat.page.get_by_role("link", name="Chat").click()
    wide_chat.page.wait_for_selector("#composer")
    assert wide_chat.page.url.endswith("/")
