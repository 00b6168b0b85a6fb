"""The page of sweeps in a real browser: the list, one sweep with its pictures, launching, stopping, both languages."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mmd.artifacts import ArtifactStore
from mmd.config import ServeSettings
from serve_apps.keys_cli import add_key
from serve_apps.sweeps import SweepDesk
from tests.serve_apps.sweep_records import (
    CONKD,
    GATES,
    LOST,
    RULES,
    RUNNING,
    JobServer,
    job_server,
    students,
    write_all,
    write_sweep,
)

Open = Callable[..., AbstractContextManager[Any]]
WIDE = {"viewport": {"width": 1200, "height": 900}}

pytestmark = pytest.mark.browser


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> ArtifactStore:
    shutil.copytree(tiny_store, tmp_path / "store")
    found = ArtifactStore(str(tmp_path / "store"))
    write_all(found)
    return found


@pytest.fixture
def url(backend: Any, store: ArtifactStore, serving: Callable[..., str]) -> str:
    """A service without keys: it shows, and does not launch."""
    settings = ServeSettings()
    return serving(backend, settings, sweeps=SweepDesk(store, settings)) + "sweeps"


@pytest.fixture
def cluster(free_port: Callable[[], int]) -> Iterator[JobServer]:
    with job_server(free_port()) as server:
        yield server


@pytest.fixture
def keyed(
    backend: Any, store: ArtifactStore, serving: Callable[..., str], cluster: JobServer, tmp_path: Path
) -> tuple[str, str]:
    """The address of a page that may launch, and a key."""
    key = add_key(tmp_path / "keys.txt", "lab")
    settings = ServeSettings(api_keys_file=str(tmp_path / "keys.txt"), jobs_address=cluster.address)
    return serving(backend, settings, sweeps=SweepDesk(store, settings)) + "sweeps", key


def with_key(page: Any, key: str) -> None:
    page.wait_for_selector("#key-form:not([hidden])")
    page.fill("#key", key)
    page.click("#key-form button")
    page.wait_for_selector("#rows tr")


def test_the_list_tells_of_every_sweep_and_its_state(opened: Open, url: str):
    with opened(url, **WIDE) as page:
        page.wait_for_selector("#rows tr")
        assert page.locator("#rows .state").all_inner_texts() == ["running", "interrupted", "failed", "done", "done"]
        first = page.locator("#rows tr").first.inner_text()
        assert "Distillation (ConKD)" in first
        assert "3 of 12" in first
        assert page.locator("#rows progress").first.get_attribute("max") == "12"
        assert not page.locator("#detail").is_visible()
        page.locator("#launch > summary").click()
        assert "serve.api_keys_file" in page.locator("#launching").inner_text()
        assert not page.locator("#launch-form").is_visible()


def test_a_sweep_is_opened_by_keyboard_and_shown_with_its_pictures(opened: Open, url: str):
    with opened(url, **WIDE) as page:
        page.wait_for_selector("#rows tr")
        page.locator(f'a[href="#{CONKD}"]').focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#detail:not([hidden])")
        assert page.evaluate("document.activeElement.id") == "detail-title"
        best = page.locator("#best tbody tr")
        assert best.count() == 1
        assert best.locator("td").all_inner_texts()[:3] == ["soft", "0.9", "1"]
        pictures = page.locator("#charts svg")
        assert pictures.count() == 3
        axes = pictures.nth(0).locator("text.name").all_text_contents()
        assert axes == ["gate", "gamma", "eta", "score"]  # all temperatures are one
        assert pictures.nth(0).locator("polyline.line").count() == 6
        assert pictures.nth(0).locator("polyline.best").count() == 1
        assert "6 trials over gate, gamma, eta, score" in pictures.nth(0).get_attribute("aria-label")
        assert pictures.nth(1).locator("polyline").count() == 6
        assert pictures.nth(2).locator("circle").count() == 6
        assert page.locator("#trials tbody tr").count() == 6
        page.locator("#space summary").click()
        assert "recommend.sweep.gammas" in page.locator("#space").inner_text()
        page.locator("#close").click()
        assert not page.locator("#detail").is_visible()


def test_gates_show_f1_over_tau_and_a_best_trial_a_task(opened: Open, url: str):
    with opened(f"{url}#{GATES}", **WIDE) as page:
        page.wait_for_selector("#detail:not([hidden])")
        assert page.locator("#best tbody tr").count() == 2
        assert page.locator("#charts h3").all_inner_texts()[1] == "weighted_f1 over tau"
        assert page.locator("#trials tbody tr").count() == 10  # of 18
        page.get_by_role("button", name="Show more").click()
        assert page.locator("#trials tbody tr").count() == 18


def test_why_a_sweep_failed_is_told_and_one_without_trials_is_no_error(opened: Open, url: str):
    with opened(f"{url}#{RULES}", **WIDE) as page:
        page.wait_for_selector("#detail:not([hidden])")
        assert "features/tiny: is gone." in page.locator("#summary").inner_text()
        page.locator(f'a[href="#{LOST}"]').click()
        page.locator("#detail-title", has_text="Share of text").wait_for()
        assert page.locator("#best").inner_text() == "No trial has reported anything yet."
        assert page.locator("#charts svg").count() == 0
        page.evaluate("location.hash = '#20260101-000000-conkd-ffffffff'")
        page.wait_for_selector("#problem:not([hidden])")
        assert "no such sweep" in page.locator("#problem").inner_text()


def test_a_running_sweep_is_followed_to_its_end_and_the_focus_stays(
    opened: Open, url: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
):
    with opened(f"{url}#{RUNNING}", **WIDE) as page:
        page.wait_for_selector("#detail:not([hidden])")
        assert page.locator("#charts polyline.going").count() > 0
        link = page.locator(f'a[href="#{RUNNING}"]')
        link.focus()
        write_sweep(store, RUNNING, students())
        page.wait_for_selector("#detail .state.done", timeout=15_000)
        assert page.locator("#charts polyline.going").count() == 0
        assert page.evaluate("document.activeElement.dataset.key") == RUNNING
        assert page.locator("#announce").inner_text() == "Distillation (ConKD): done"


def test_a_sweep_is_launched_with_what_was_changed_and_stopped(
    opened: Open, keyed: tuple[str, str], cluster: JobServer
):
    url, key = keyed
    with opened(url, **WIDE) as page:
        with_key(page, key)
        page.locator("#launch > summary").click()
        page.wait_for_selector("#fields .field")
        assert page.locator("#corpus").input_value() == "tiny"
        page.locator("#more-fields > summary").click()
        page.locator("#field-intent-predicates-kinds input[value=item]").uncheck()
        page.locator("#field-intent-search-rollouts").fill("many")
        page.locator("#send").click()
        page.wait_for_selector("#error:not([hidden])")
        assert page.locator("#error").inner_text() == "intent.search.rollouts: many is not a number."
        page.locator("#field-intent-search-rollouts").fill("0")
        page.locator("#send").click()
        page.locator("#error", has_text="greater than or equal to 1").wait_for()
        page.locator("#field-intent-search-rollouts").fill("25")
        page.keyboard.press("Enter")
        page.wait_for_selector("#detail .state.waiting")
        [job] = cluster.jobs.values()
        assert "intent.search.rollouts=25" in job["entrypoint"]
        assert 'intent.predicates.kinds=["text", "ocr", "image", "near"]' in job["entrypoint"]
        assert "max_length" not in job["entrypoint"]
        page.on("dialog", lambda dialog: dialog.accept())
        page.locator("#stop").click()
        page.wait_for_selector("#detail .state.stopped")
        assert not page.locator("#stop").is_visible()
        assert job["status"] == "STOPPED"


def test_a_sweep_whose_needs_are_not_there_is_told(opened: Open, keyed: tuple[str, str]):
    url, key = keyed
    with opened(url, **WIDE) as page:
        with_key(page, key)
        page.locator("#launch > summary").click()
        page.wait_for_selector("#fields .field")
        page.locator("#kind").select_option("conkd")
        assert "graph, teacher" in page.locator("#error").inner_text()
        assert page.locator("#send").is_disabled()
        page.locator("#kind").select_option("rules")
        assert page.locator("#send").is_enabled()


def test_a_cluster_that_is_away_is_told_beside_the_list(
    opened: Open, keyed: tuple[str, str], cluster: JobServer, monkeypatch: pytest.MonkeyPatch
):
    cluster.token = "0123"  # noqa: S105 (of the job server in these tests)
    url, key = keyed
    with opened(url, **WIDE) as page:
        with_key(page, key)
        page.wait_for_selector("#problem:not([hidden])")
        assert "token" in page.locator("#problem").inner_text()


def test_every_word_turns_chinese(opened: Open, url: str):
    with opened(f"{url}#{CONKD}", **WIDE) as page:
        page.wait_for_selector("#detail:not([hidden])")
        page.locator("#language").select_option("zh")
        assert page.locator("h1").inner_text() == "参数搜索"
        assert page.locator("html").get_attribute("lang") == "zh-Hans"
        assert page.locator("#rows .state").first.inner_text() == "进行中"
        text = page.locator("main").inner_text()
        for english in ("Sweep", "Trials", "Best", "running", "Launch", "Settings and results", "higher"):
            assert english not in text
        assert page.locator("#charts svg").first.get_attribute("aria-label").startswith("6 个试验")


@pytest.mark.parametrize("sweep_id", [CONKD, GATES, RULES])
def test_nothing_overflows_a_phone(opened: Open, url: str, sweep_id: str):
    with opened(f"{url}#{sweep_id}") as page:
        page.wait_for_selector("#detail:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.locator("#rows td").nth(2).evaluate("n => getComputedStyle(n, '::before').content") == '"State"'


def test_every_control_and_picture_has_a_name_and_headings_do_not_skip(opened: Open, keyed: tuple[str, str]):
    url, key = keyed
    with opened(f"{url}#{CONKD}", **WIDE) as page:
        with_key(page, key)
        page.wait_for_selector("#detail:not([hidden])")
        page.locator("#launch > summary").click()
        page.wait_for_selector("#fields .field")
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, select, input, svg, table, [tabindex='0']")]
                .filter((n) => !n.matches("[aria-hidden]"))
                .filter((n) => !(n.getAttribute("aria-label") || n.getAttribute("aria-labelledby") || n.labels?.length
                    || n.textContent.trim()))
                .map((n) => n.outerHTML)"""
        )
        assert nameless == []
        levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((n) => Number(n.tagName[1]))")
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))


def test_words_from_a_record_are_never_taken_for_markup(opened: Open, url: str, store: ArtifactStore):
    bad = '<img src=x onerror="window.hit=1">'
    trials = [trial.model_copy(update={"setting": {bad: bad, "n": n}}) for n, trial in enumerate(students())]
    write_sweep(store, CONKD, trials, note=bad, corpus=bad, artifact=bad)
    with opened(f"{url}#{CONKD}", **WIDE) as page:
        page.wait_for_selector("#detail:not([hidden])")
        assert page.locator("main img").count() == 0
        assert page.evaluate("window.hit") is None
        assert bad in page.locator("#summary").inner_text()


def test_the_other_pages_lead_here(opened: Open, url: str):
    for path in ("", "try"):
        with opened(re.sub("sweeps$", path, url), **WIDE) as page:
            page.locator("nav a", has_text="Sweeps").click()
            page.wait_for_selector("#rows tr")
