"""What the page makes of answers that break off, lie about their form, are refused, or try to be more than text."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_answers import CHAT, chunk, ending, event, record, refuse, stream
from page_faults import Faults
from playwright.sync_api import Locator, Page, Route, expect
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
    refuse(page, 503, {"retry-after": "3"}, "the queue is full", times=1)
    opened(page, shared.url)
    ask(page)
    expect(column(page).get_by_role("alert")).to_contain_text("the queue is full")
    expect(column(page)).to_contain_text(re.compile(r"again in \d s"))
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


WATCH = """() => {
    window.replaced = 0;
    new MutationObserver((changes) => {
        for (const change of changes)
            for (const node of change.removedNodes) if (node.classList?.contains("tokens-token")) window.replaced += 1;
    }).observe(document.body, { childList: true, subtree: true });
}"""


def test_tokens_that_stand_are_never_drawn_again(page: Page, shared: Running) -> None:
    opened(page, shared.url)
    page.evaluate(WATCH)
    ask(page)
    expect(column(page).get_by_role("button", name=re.compile("again"))).to_be_visible()
    assert column(page).locator(".tokens-token").count() > 50
    assert page.evaluate("window.replaced") == 0


def test_a_thousand_tokens_are_drawn(page: Page, shared: Running, shot: Callable[[str], Path]) -> None:
    words = [f" word{index}" for index in range(1000)]
    body = "".join(chunk(word, [record(word, steered=-2 + index % 5)]) for index, word in enumerate(words))
    stream(page, body + ending())
    opened(page, shared.url)
    ask(page)
    expect(column(page).locator(".tokens-token")).to_have_count(1000)
    assert column(page).locator(".tokens-text").inner_text() == "".join(words)
    shot("thousand-tokens")


def test_fifty_tokens_more_fit_into_a_frame_at_the_end_of_a_thousand(page: Page, shared: Running) -> None:
    page.goto(shared.url)
    spent = page.evaluate(
        """async (record) => {
            const { TokenList } = await import("/static/views/token_list.js");
            const box = document.body.appendChild(document.createElement("div"));
            const list = new TokenList(box);
            const [records, spent] = [[], []];
            let text = "";
            for (let step = 0; step < 20; step++) {
                for (let more = 0; more < 50; more++) {
                    records.push({ ...record, text: ` word${records.length}` });
                    text += records.at(-1).text;
                }
                const began = performance.now();
                list.show(records, text, false);
                box.offsetHeight; // with the layout
                spent.push(performance.now() - began);
                await new Promise(requestAnimationFrame);
            }
            return spent;
        }""",
        record(""),
    )
    assert page.locator(".tokens-token").count() == 1000
    assert min(spent[-5:]) < 16, spent  # milliseconds; the others measure what else the machine does


def test_a_window_that_goes_gives_the_focus_back(page: Page, shared: Running) -> None:
    stream(page, chunk("Yes.") + ending())
    page.goto(shared.url)
    page.get_by_role("button", name="Presets").click()
    page.get_by_role("button", name=re.compile("^Try: ")).first.click()
    expect(page.get_by_role("button", name="Presets")).to_be_focused()


def test_a_column_that_is_removed_runs_no_more(page: Page, shared: Running) -> None:
    held: list[Route] = []
    page.route(CHAT, lambda route: held.append(route))
    opened(page, shared.url)
    page.get_by_role("button", name="Add a column").click()
    ask(page)
    expect(page.get_by_role("button", name="Stop column 2")).to_be_visible()
    page.get_by_role("button", name="Remove column 2").click()
    held[0].fulfill(status=200, content_type="text/event-stream", body=chunk("Yes.") + ending())
    expect(page.get_by_role("button", name="Run column 1 again")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("^Stop"))).to_have_count(0)


def test_the_same_end_twice_leaves_the_way_to_send(page: Page, shared: Running) -> None:
    stream(page, chunk("Yes.") + ending())
    opened(page, shared.url)
    for _ in range(2):  # nothing new is told the second time
        ask(page)
        expect(page.get_by_role("button", name="Stop")).to_have_count(0)
        expect(column(page).get_by_role("button", name=re.compile("again"))).to_be_visible()
    ask(page, "And now?")
    expect(page.locator(".turn-user")).to_have_count(3)


def test_one_after_another_goes_on_when_one_is_stopped(page: Page, shared: Running) -> None:
    release: list[Route] = []
    page.goto(shared.url)
    page.get_by_label("Measured by").select_option("")
    page.get_by_label("One after another").check()
    page.route(CHAT, lambda route: release.append(route))
    ask(page)
    page.wait_for_timeout(200)
    assert len(release) == 1
    page.get_by_role("button", name="Stop column 2").click()
    release.pop().fulfill(status=200, content_type="text/event-stream", body=chunk("One.") + ending())
    expect(page.get_by_role("button", name="Run column 1 again")).to_be_visible()
    page.wait_for_timeout(200)
    assert len(release) == 1, "the third was not asked"
    release.pop().fulfill(status=200, content_type="text/event-stream", body=chunk("Three.") + ending())
    expect(page.get_by_role("button", name="Run column 3 again")).to_be_visible()
    expect(page.get_by_role("region", name=re.compile("^Column 2:"))).to_contain_text("Stopped.")


def test_a_removed_column_is_not_gone_on_from(page: Page, shared: Running) -> None:
    asked: list[dict[str, Any]] = []

    def answer(route: Route) -> None:
        asked.append(route.request.post_data_json)
        text = f"Answer {len(asked)}."
        route.fulfill(status=200, content_type="text/event-stream", body=chunk(text) + ending())

    page.route(CHAT, answer)
    page.goto(shared.url)
    page.get_by_label("Measured by").select_option("")
    page.get_by_label("One after another").check()
    ask(page)
    expect(page.get_by_role("button", name="Run column 3 again")).to_be_visible()
    page.get_by_role("button", name="Remove column 1").click()
    expect(page.get_by_role("button", name="Add a column")).to_be_focused()
    ask(page, "And?")
    expect(page.locator(".turn-text").nth(1)).to_have_text("Answer 2.")
    assert [message["content"] for message in asked[-1]["messages"]] == ["Hello!", "Answer 2.", "And?"]


def test_a_busy_server_is_not_asked_for_ever(page: Page, shared: Running, faults: Faults) -> None:
    faults.allow("503")
    asked: list[Route] = []

    def refused(route: Route) -> None:
        asked.append(route)
        body = '{"error": {"message": "the queue is full"}}'
        route.fulfill(status=503, headers={"retry-after": "0"}, content_type="application/json", body=body)

    page.route(CHAT, refused)
    opened(page, shared.url)
    ask(page)
    page.wait_for_timeout(6000)  # a second before each of three more
    assert len(asked) == 4


@pytest.mark.parametrize(
    "setting",
    [
        {"strategy": "sample", "steer": 5},
        {"strategy": "sample", "prompt": [None]},
        {"strategy": "best_of_n", "select": {"rule": {}}},
        {"strategy": "speculative_rejection", "reward": "x", "schedule": "x"},
    ],
)
def test_a_link_that_lies_leaves_a_page_that_works(page: Page, shared: Running, setting: dict[str, Any]) -> None:
    told = json.dumps({"settings": [setting], "turns": [{"role": "user", "content": "Hello!"}]})
    page.goto(f"{shared.url}/#{base64.urlsafe_b64encode(told.encode()).decode().rstrip('=')}")
    expect(page.locator(".turn-text")).to_have_text("Hello!")
    expect(column(page)).to_contain_text("sample")
    column(page).get_by_text("Strategy and parameters").click()
    expect(column(page).get_by_label("Strategy", exact=True)).to_be_visible()


def test_tokens_are_reached_by_keyboard(page: Page, shared: Running) -> None:
    stream(page, "".join(chunk(word, [record(word)]) for word in ("One", " two", " three")) + ending())
    opened(page, shared.url)
    ask(page)
    expect(column(page).locator(".tokens-token")).to_have_count(3)
    column(page).get_by_text("Strategy and parameters").focus()
    page.keyboard.press("Tab")
    expect(page.get_by_role("tooltip")).to_contain_text("One")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tooltip")).to_contain_text("two")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Continue from here")
    expect(dialog).to_contain_text("One two")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(column(page).locator(".tokens-token").nth(1)).to_be_focused()


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_is_wider_than_the_window(open_page: Callable[..., Page], shared: Running, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 800})
    text = "".join(chunk(word, [record(word)]) for word in ["long" * 50, " and", " short"] * 20)
    stream(page, text + ending())
    page.goto(shared.url)
    ask(page, "x" * 500)
    for each in page.locator("details > summary").all():
        each.click()
    expect(page.get_by_role("button", name="Run column 3 again")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
