"""The forms, first settings and presets of everything that the server lists."""

import re
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, expect
from running import Running

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("built")]

TINY = re.compile(r"context holds 256 tokens|add .* to `steer`")
"""what the tiny model and its guides cannot do, as the server says it"""
OFFERED = """async () => {
    const { Api } = await import("/static/net/api.js");
    const { Catalogue } = await import("/static/model/catalogue.js");
    const { presets } = await import("/static/model/presets.js");
    const catalogue = await Catalogue.load(new Api());
    const usable = catalogue.strategies.filter(({ name }) => catalogue.missing(name) === null);
    const starts = usable.map(({ name }) => [name, catalogue.start(name)]);
    return [...starts, ...presets(catalogue).flatMap(({ title, settings }) => settings.map((each) => [title, each]))];
}"""


@pytest.fixture
def offered(page: Page, shared: Running) -> list[tuple[str, dict[str, Any]]]:
    """Names with decoding objects: how each strategy begins, and the columns of each preset."""
    page.goto(shared.url)
    found: list[tuple[str, dict[str, Any]]] = page.evaluate(OFFERED)
    return found


def test_what_the_page_offers_the_server_takes(offered: list[tuple[str, dict[str, Any]]], shared: Running) -> None:
    assert len(offered) > 60
    refused = {}
    with httpx2.Client(base_url=shared.url, timeout=60) as client:
        for name, decoding in offered:
            body = {
                "model": client.get("/v1/models").json()["data"][0]["id"],
                "messages": [{"role": "user", "content": "Hi"}],
                "max_tokens": 4,
                "decoding": {**decoding, "trace": "both", "budget": {"deadline_ms": 2000}},
            }
            answer = client.post("/v1/chat/completions", json=body)
            if answer.status_code != 200 and not TINY.search(answer.json()["error"]["message"]):
                refused[name] = answer.json()["error"]
    assert not refused, [(name, told["message"]) for name, told in refused.items()]


def test_every_strategy_has_a_form(page: Page, shared: Running) -> None:
    page.goto(shared.url)
    column = page.get_by_role("region", name="Column 1")
    column.get_by_text("Strategy and parameters").click()
    choice = column.get_by_label("Strategy", exact=True)
    names = choice.locator("option:not([disabled])").evaluate_all("options => options.map(option => option.value)")
    assert len(names) > 40
    for name in names:
        choice.select_option(name)
        expect(column.locator(".column-title")).to_contain_text(name)
        assert column.get_by_role("alert").count() == 0, name
        folded = column.locator(".form details:not([open]) > summary")
        while folded.count():
            folded.first.click()
        unlabelled = column.locator(".form :is(input, select, textarea)").evaluate_all(
            "all => all.filter(each => !each.labels?.length && !each.ariaLabel).map(each => each.outerHTML)"
        )
        assert not unlabelled, name


def test_the_slider_changes_what_is_sent(page: Page, shared: Running) -> None:
    page.goto(shared.url)
    column = page.get_by_role("region", name="Column 2")
    column.get_by_text("Strategy and parameters").click()
    column.get_by_role("slider").press("ArrowRight")
    with page.expect_request(lambda request: "best_of_n" in (request.post_data or "")) as asked:
        page.get_by_label("Prompt for all columns").fill("Hello!")
        page.get_by_role("button", name="Send").click()
    assert asked.value.post_data_json["decoding"]["n"] == 16
    expect(column.locator(".column-title")).to_contain_text("n 16")
