"""What is set on the page changes what is asked, and what is shown."""

import re
from typing import Any

import pytest
from page_answers import CHAT, chunk, ending, record
from playwright.sync_api import Page, Route, expect
from running import Running

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("built")]


@pytest.fixture
def asked(page: Page, shared: Running) -> list[dict[str, Any]]:
    """The page with one column, and the requests that it sends; each is answered by two words."""
    sent: list[dict[str, Any]] = []

    def answer(route: Route) -> None:
        sent.append(route.request.post_data_json)
        body = "".join(chunk(word, [record(word)]) for word in ("One", " two")) + ending()
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route(CHAT, answer)
    page.goto(shared.url)
    for number in (3, 2):
        page.get_by_role("button", name=f"Remove column {number}").click()
    return sent


def ask(page: Page) -> None:
    page.get_by_label("Prompt for all columns").fill("Hello!")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("button", name="Run column 1 again")).to_be_visible()


def test_traces_sampling_and_the_system_message_are_sent(page: Page, asked: list[dict[str, Any]]) -> None:
    ask(page)
    page.get_by_label("Trace tokens and searches").uncheck()
    page.get_by_text("System message and sampling").click()
    page.get_by_label("System message", exact=True).fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Seed").fill("7")
    ask(page)
    traced, plain = asked
    assert (traced["decoding"]["trace"], traced["stream_options"]["include_trace"]) == ("tokens", True)
    assert "trace" not in plain["decoding"]
    assert "include_trace" not in plain["stream_options"]
    assert plain["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (plain["temperature"], plain["seed"]) == (0.5, 7)
    page.get_by_role("button", name="Again with the next seed").click()
    expect(page.get_by_label("Seed")).to_have_value("8")
    assert asked[-1]["seed"] == 8


def test_a_wrong_number_is_not_sent(page: Page, asked: list[dict[str, Any]]) -> None:
    page.get_by_text("System message and sampling").click()
    page.get_by_label("Temperature").fill("5")
    page.get_by_label("Prompt for all columns").fill("Hello!")
    page.get_by_label("Prompt for all columns").press("Enter")
    expect(page.get_by_label("Temperature")).to_be_focused()
    assert not asked


def test_both_guides_measure_answers_and_beginnings(page: Page, asked: list[dict[str, Any]], shared: Running) -> None:
    names = page.get_by_label("Gold").locator("option").all_inner_texts()
    first, second = names[1:3]
    page.get_by_label("Measured by").select_option(first)
    page.get_by_label("Gold").select_option(second)
    ask(page)
    measures = page.locator(".measure")
    for place, name in ((0, first), (1, f"{second} (gold)")):
        expect(measures.nth(place).locator("dt")).to_have_text(name)
        expect(measures.nth(place).locator("dd")).to_have_text(re.compile(r"^-?\d+\.\d{3}$"))
    with page.expect_request("**/v1/score") as scored:
        page.get_by_role("button", name="Measure reward so far").click()
    told = scored.value.post_data_json
    assert told["model"] == first
    assert [each[-1]["content"] for each in told["conversations"]] == ["One", "One two"]
    expect(page.get_by_text("Reward so far, measured")).to_be_visible()


def test_the_theme_is_chosen_and_stays(page: Page, shared: Running) -> None:
    page.goto(shared.url)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Dark").click()
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    expect(page.get_by_role("button", name="Dark")).to_have_attribute("aria-pressed", "true")
    assert page.evaluate(ground) == dark
