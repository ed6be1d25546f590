"""What the page makes of answers that break off, lie about their form, are refused, or try to be more than text."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from page_answers import chunk, ending, event, record, refuse, stream
from page_faults import Faults
from playwright.sync_api import Locator, Page, expect
from running import Running

from trimtab.server.keys import digest

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("built")]

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>&lt;b&gt;"
WORLD = "مرحبا بالعالم 👩‍👩‍👧‍👦 שלום 你好 e\u0301"


def column(page: Page) -> Locator:
    return page.get_by_role("region", name=re.compile("^Column 1:"))


def opened(page: Page, url: str) -> None:
    """The page with one column, whose answers nobody measures."""
    page.goto(url)
    for number in (3, 2):
        page.get_by_role("button", name=f"Remove column {number}").click()
    page.get_by_label("Measured by").select_option("")


def ask(page: Page, prompt: str = "Hello!") -> None:
    page.get_by_label("Prompt for all columns").fill(prompt)
    page.get_by_label("Prompt for all columns").press("Enter")


@pytest.mark.parametrize("text", [HOSTILE, WORLD])
@pytest.mark.parametrize("traced", [False, True])
def test_text_stays_text(page: Page, shared: Running, text: str, traced: bool) -> None:
    pieces = [text[index : index + 7] for index in range(0, len(text), 7)]
    body = "".join(chunk(piece, [record(piece)] if traced else None) for piece in pieces)
    stream(page, body + ending(report={"note": text}))
    opened(page, shared.url)
    ask(page, text)
    expect(column(page).locator(".tokens-text")).to_have_text(text, use_inner_text=False)
    expect(page.locator(".turn-text")).to_have_text(text)
    assert page.title() == "trimtab playground"
    assert page.locator("img").count() == 0


def test_a_garbled_event_is_told_and_what_came_before_stays(page: Page, shared: Running) -> None:
    stream(page, chunk("A good ") + 'data: {"choices": [\n\n' + chunk("end.") + ending())
    opened(page, shared.url)
    ask(page)
    expect(column(page).get_by_role("alert")).to_contain_text("could not be read")
    expect(column(page).locator(".tokens-text")).to_have_text("A good ")


def test_a_stream_that_ends_early_is_told_and_tried_again(page: Page, shared: Running) -> None:
    stream(page, chunk("Half an ans"))
    opened(page, shared.url)
    ask(page)
    expect(column(page).get_by_role("alert")).to_contain_text("broke off")
    expect(column(page).locator(".tokens-text")).to_have_text("Half an ans")
    page.unroute_all()
    stream(page, chunk("Whole.") + ending())
    column(page).get_by_role("button", name="Try again").click()
    expect(column(page).locator(".tokens-text")).to_have_text("Whole.")
    expect(column(page).get_by_role("alert")).to_have_count(0)


def test_an_error_event_is_shown(page: Page, shared: Running) -> None:
    error = {"message": "reward 'x' failed: no number", "type": "server_error", "param": None, "code": "guide"}
    stream(page, chunk("Some") + event({"error": error}) + "data: [DONE]\n\n")
    opened(page, shared.url)
    ask(page)
    expect(column(page).get_by_role("alert")).to_contain_text("reward 'x' failed: no number")


def test_a_busy_server_is_asked_again_when_it_says(page: Page, shared: Running, faults: Faults) -> None:
    faults.allow("503")
    stream(page, chunk("At last.") + ending())
    refuse(page, 503, {"retry-after": "1"}, "the queue is full", times=1)
    opened(page, shared.url)
    ask(page)
    expect(column(page).get_by_role("alert")).to_contain_text("the queue is full")
    expect(column(page).get_by_role("alert")).to_contain_text(re.compile(r"again in \d s"))
    expect(column(page).locator(".tokens-text")).to_have_text("At last.")


def test_a_key_is_asked_for_once(page: Page, start: Callable[..., Running], faults: Faults) -> None:
    faults.allow("401")
    running = start({"keys": {"me": {"sha256": digest("secret-key").hex()}}})
    page.goto(running.url)
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key", exact=True).fill("wrong")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_contain_text("knows no such key")
    dialog.get_by_label("Key", exact=True).fill("secret-key")
    dialog.get_by_role("button", name="Use this key").click()
    expect(column(page)).to_be_visible()
    ask(page)
    expect(column(page).get_by_role("button", name=re.compile("again"))).to_be_visible()
    expect(column(page).get_by_role("alert")).to_have_count(0)
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert "secret" not in kept


def test_a_thousand_tokens_stay_smooth(page: Page, shared: Running, shot: Callable[[str], Path]) -> None:
    words = [f" word{index}" for index in range(1000)]
    body = "".join(chunk(word, [record(word, steered=-2 + index % 5)]) for index, word in enumerate(words))
    stream(page, body + ending())
    opened(page, shared.url)
    page.evaluate(
        """() => {
            window.longest = 0;
            new PerformanceObserver((list) => {
                for (const entry of list.getEntries()) window.longest = Math.max(window.longest, entry.duration);
            }).observe({ type: "longtask" });
            window.replaced = 0;
            new MutationObserver((changes) => {
                for (const change of changes)
                    for (const node of change.removedNodes)
                        if (node.classList?.contains("tokens-token")) window.replaced += 1;
            }).observe(document.body, { childList: true, subtree: true });
        }"""
    )
    ask(page)
    expect(column(page).locator(".tokens-token")).to_have_count(1000)
    assert page.evaluate("window.replaced") == 0, "tokens that stood were drawn again"
    assert column(page).locator(".tokens-text").inner_text() == "".join(words)
    shot("thousand-tokens")
