"""The page to try each part in a real browser: by mouse, keyboard and drop, in both languages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pytest

from mmd.artifacts import ArtifactStore
from mmd.config import ServeSettings
from mmd.intent.engine import IntentEngine
from mmd.recommend.conversations import Conversations

Open = Callable[[str], AbstractContextManager[Any]]

pytestmark = pytest.mark.browser


@pytest.fixture
def url(backend: Any, serving: Callable[..., str]) -> str:
    return serving(backend, ServeSettings(max_image_mb=0.3))


@pytest.fixture
def page(opened: Open, url: str) -> Iterator[Any]:
    """A page over intent recognition alone."""
    with opened(f"{url}try") as page:
        page.wait_for_selector(".examples button")
        yield page


@pytest.fixture
def full_page(opened: Open, full_backend: Any, serving: Callable[..., str]) -> Iterator[Any]:
    """A page over all parts."""
    with opened(f"{serving(full_backend, ServeSettings())}try") as page:
        page.wait_for_selector("#modality-row:not([hidden])")
        yield page


def test_an_example_is_answered_with_label_confidence_and_who_decided(page: Any):
    page.locator(".examples button").first.click()
    page.wait_for_selector(".prediction")
    assert page.locator(".prediction .label").first.inner_text()
    assert "Decided by" in page.locator(".badge").first.inner_text()
    assert "Corpus label" in page.locator(".who").first.inner_text()
    assert "%" in page.locator(".bar.whole .number").first.inner_text()


def test_an_example_is_sent_as_the_corpus_has_it_products_included(page: Any, url: str):
    examples = httpx.get(f"{url}v1/examples").json()["examples"]
    for number, example in enumerate(examples):
        with page.expect_request("**/v1/intent") as sent:
            page.locator(".examples button").nth(number).click()
        assert sent.value.post_data_json["turns"] == example["turns"]
    assert any(turn["item_ids"] for example in examples for turn in example["turns"])


def test_a_dialogue_is_written_and_sent_with_the_keyboard_alone(page: Any):
    page.locator("#turns textarea").focus()
    page.keyboard.type("I want a refund")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".rule")
    assert "a message contains “refund”" in page.locator(".rule").first.inner_text()
    assert "88 % right on 8 training dialogues" in page.locator(".rule").first.inner_text()


def test_the_shares_of_the_models_are_told_in_plain_words(page: Any, backend: Any, mllm_store: Path):
    backend.engine = IntentEngine.from_store(ArtifactStore(str(mllm_store)), "tiny")
    page.locator("#turns textarea").fill("I want a refund")
    page.locator("#send").click()
    page.wait_for_selector(".shares")
    assert page.locator(".badge").first.inner_text() == "Decided by rules and classifier together"
    assert (
        page.locator(".shares").inner_text() == "The classifier here is 40 % large model and 60 % small model (probe)."
    )
    page.locator("#language").select_option("zh")
    assert page.locator(".shares").inner_text() == "此处的分类器：大模型占 40 %，小模型（探针）占 60 %。"


def test_the_language_switch_turns_every_word_and_the_rules(page: Any):
    page.locator("#turns textarea").fill("I want a refund")
    page.locator("#send").click()
    page.wait_for_selector(".rule")
    page.locator("#language").select_option("zh")
    assert page.locator("h1").inner_text() == "顾客想要什么？"
    assert "对话里有“refund”" in page.locator(".rule").first.inner_text()
    assert page.locator("html").get_attribute("lang") == "zh-Hans"


def test_a_picture_is_uploaded_shown_and_removed(page: Any, tmp_path: Path):
    picture = tmp_path / "shoe.png"
    PIL.Image.new("RGB", (40, 30), "teal").save(picture)
    page.locator("#turns input[type=file]").set_input_files(picture)
    thumbnail = page.locator(".pictures img")
    assert thumbnail.get_attribute("alt") == "Picture shoe.png"
    page.locator("#send").click()
    page.wait_for_selector(".prediction")
    assert page.locator(".prediction h3").first.inner_text() == "image scene"
    page.get_by_label("Remove picture shoe.png").click()
    assert thumbnail.count() == 0


def test_a_dropped_file_that_is_no_picture_is_explained(page: Any):
    transfer = page.evaluate_handle(
        """() => {
            const transfer = new DataTransfer()
            transfer.items.add(new File(["x"], "a.pdf", { type: "application/pdf" }))
            return transfer
        }"""
    )
    page.dispatch_event(".turn", "drop", {"dataTransfer": transfer})
    assert page.locator("#error").inner_text().startswith("a.pdf is not a picture that can be read")


def test_an_empty_dialogue_is_refused_kindly(page: Any):
    page.locator("#send").click()
    assert page.locator("#error").inner_text() == "Write what the customer says, or add a picture."


def test_turns_are_added_swapped_and_removed(page: Any):
    page.locator("#add-agent").click()
    assert page.locator(".turn.agent textarea").evaluate("node => node === document.activeElement")
    page.locator(".turn.agent .swap").click()
    assert page.locator(".turn.user").count() == 2
    page.get_by_label("Remove turn 2").click()
    assert page.locator(".turn").count() == 1


def test_nothing_overflows_a_phone(page: Any):
    page.locator(".examples button").first.click()
    page.wait_for_selector(".prediction")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_answers_are_shown_with_pictures_and_product_cards(full_page: Any):
    full_page.locator("#turns textarea").fill("A blue mug, please")
    full_page.locator("#modality").select_option("product")
    full_page.locator("#send").click()
    full_page.wait_for_selector(".hit.product")
    assert full_page.locator(".prediction .label").count() == 1  # the intent is told as well
    card = full_page.locator(".hit").first
    assert card.locator(".badge").inner_text() == "Product"
    assert card.locator(".hit-title").inner_text()
    assert card.locator("img").evaluate("node => node.decode().then(() => node.naturalWidth)") > 0
    assert full_page.locator("#retrieved > .hits > .hit").count() == 5
    full_page.locator("#language").select_option("zh")
    assert full_page.locator(".hit .badge").first.inner_text() == "商品"


def test_a_dialogue_is_answered_where_intents_are_not_served(full_page: Any, full_backend: Any):
    full_backend.serves_intent = False
    full_page.reload()
    full_page.wait_for_selector("#task-row", state="hidden")
    full_page.locator("#turns textarea").fill("A blue mug, please")
    full_page.locator("#send").click()
    full_page.wait_for_selector(".hit")
    assert full_page.locator(".prediction").count() == 0
    assert not full_page.locator("#error").is_visible()


def test_cards_do_not_overflow_a_phone(full_page: Any):
    full_page.locator(".examples button").first.click()
    full_page.wait_for_selector(".hit")
    assert full_page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_reply_is_shown_with_its_product_the_likely_ones_and_the_trace(full_page: Any, conversations: Conversations):
    text, title = recommending(conversations)
    full_page.locator("#turns textarea").fill(text)
    full_page.locator("#mode").select_option("rec")
    full_page.locator("#send").click()
    full_page.wait_for_selector(".items .item")
    assert full_page.locator(".reply .product").first.inner_text() == title
    assert full_page.locator(".item.named .item-title").first.inner_text() == title
    assert full_page.locator(".item").count() == 5
    assert full_page.locator(".item img").first.evaluate("n => n.decode().then(() => n.naturalWidth)") > 0
    assert full_page.locator("#recommended .badge").inner_text().startswith("Recommends ")
    assert full_page.locator(".token").first.inner_text() == "[REC]"
    assert full_page.locator(".prediction .label").count() == 1
    full_page.locator("#language").select_option("zh")
    assert full_page.locator("#recommended .badge").inner_text().startswith("推荐 ")
    assert full_page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_dialogue_goes_on_with_the_reply_and_its_products(full_page: Any, conversations: Conversations):
    text, title = recommending(conversations)
    full_page.locator("#turns textarea").fill(text)
    full_page.locator("#send").click()
    full_page.get_by_role("button", name="Go on with this reply").click()
    assert title in full_page.locator(".turn.agent textarea").input_value()
    full_page.locator(".turn textarea").last.fill("Thank you")
    with full_page.expect_request("**/v1/recommend") as sent:
        full_page.locator("#send").click()
    graph = conversations.graph
    assert [graph.title(graph.item_at[i]) for i in sent.value.post_data_json["turns"][1]["item_ids"]] == [title]


def test_a_reply_that_is_refused_is_explained(full_page: Any):
    full_page.locator("#turns textarea").fill("x" * 60_000)
    full_page.locator("#send").click()
    full_page.wait_for_selector("#error:not([hidden])")
    assert "characters" in full_page.locator("#error").inner_text()


def recommending(conversations: Conversations) -> tuple[str, str]:
    """Return a customer's first words that the agent answered by naming one product, and its title."""
    graph = conversations.graph
    for dialogue in conversations.dialogues("train"):
        first, second = dialogue.turns[:2] if len(dialogue.turns) > 1 else (None, None)
        if first and second and len(set(second.items)) == 1 and not first.items and all(map(str, first.parts)):
            text = "".join(str(part) for part in first.parts)
            if text.strip():
                return text, graph.title(second.items[0])
    raise AssertionError("no such dialogue")


def test_without_retrieval_the_page_does_not_offer_it(page: Any):
    page.locator("#turns textarea").fill("I want a refund")
    page.locator("#send").click()
    page.wait_for_selector(".prediction")
    assert not page.locator("#modality-row").is_visible()
    assert page.locator(".hit").count() == 0
    assert not page.locator("#error").is_visible()


def test_every_control_has_a_name(page: Any):
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, select, textarea, input")]
            .filter((n) => !(n.getAttribute("aria-label") || n.textContent.trim() || n.labels?.length))
            .map((n) => n.outerHTML)"""
    )
    assert nameless == []


def test_the_api_document_shows_every_path(page: Any, url: str):
    page.goto(url + "docs")
    page.wait_for_selector("article")
    document = page.evaluate("fetch('openapi.json').then((answer) => answer.json())")
    shown = page.locator("article h2 code").all_inner_texts()
    assert shown == list(document["paths"])
    assert {"/v1/intent", "/v1/chat/completions", "/metrics"} <= set(shown)
