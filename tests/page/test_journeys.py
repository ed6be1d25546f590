"""What people do on the page, on the demo model: compare, look into answers, stop, and outlive a restart."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from page_faults import Faults
from playwright.sync_api import Locator, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.demo, pytest.mark.usefixtures("built")]

PATIENCE = 60_000
"""milliseconds for an answer: the machine may be busy"""


def column(page: Page, number: int) -> Locator:
    return page.get_by_role("region", name=re.compile(rf"^Column {number}:"))


def ask(page: Page, prompt: str, tokens: int = 24) -> None:
    """Write a prompt and send it."""
    sampling = page.get_by_text("System message and sampling")
    if not page.get_by_label("Max tokens").is_visible():
        sampling.click()
    page.get_by_label("Max tokens").fill(str(tokens))
    page.get_by_label("Prompt for all columns").fill(prompt)
    page.get_by_label("Prompt for all columns").press("Enter")


def finished(page: Page, number: int) -> None:
    """Wait until a column's answer has ended and was measured."""
    expect(column(page, number).get_by_role("button", name=f"Run column {number} again")).to_be_visible(
        timeout=PATIENCE
    )


def test_a_comparison_streams_and_is_measured(page: Page, demo: str, shot: Callable[[str], Path]) -> None:
    page.goto(demo)
    expect(column(page, 1)).to_contain_text("sample")
    expect(column(page, 2)).to_contain_text("best_of_n")
    expect(column(page, 3)).to_contain_text("genarm")
    ask(page, "Say something nice about rain.")
    for number in (1, 2, 3):
        finished(page, number)
        expect(column(page, number).locator(".measure").first).to_contain_text(re.compile(r"-?\d\.\d{3}"))
    texts = [column(page, number).locator(".tokens-text").inner_text() for number in (1, 2, 3)]
    assert all(len(text) > 20 for text in texts)
    assert len(set(texts)) > 1  # the best of eight may be the plain one
    coloured = "[class*=tokens-heat-]:not(.tokens-heat-0)"
    expect(column(page, 1).locator(coloured)).to_have_count(0)
    expect(column(page, 3).locator(coloured)).not_to_have_count(0)
    expect(page.locator(".scatter-point")).to_have_count(3)
    shot("comparison")


def test_a_token_tells_what_it_was_drawn_from(page: Page, demo: str, shot: Callable[[str], Path]) -> None:
    page.goto(demo)
    page.get_by_role("button", name="Presets").click()
    page.get_by_role("button", name="Try: Weak, medium, strong").click()
    for number in (1, 2, 3):
        finished(page, number)
    token = column(page, 3).locator(".tokens-token").nth(6)
    token.hover()
    card = page.get_by_role("tooltip")
    expect(card).to_be_visible()
    expect(card).to_contain_text("Top 5 before")
    expect(card).to_contain_text("Top 5 after")
    expect(card.locator(".tokens-top-bar")).to_have_count(10)
    expect(card.locator(".tokens-top-chosen").last).to_contain_text(token.inner_text().strip())
    shot("token")
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()


def test_candidates_open_and_tell_why_they_lost(page: Page, demo: str, shot: Callable[[str], Path]) -> None:
    page.goto(demo)
    ask(page, "Say something nice about rain.")
    finished(page, 2)
    search = column(page, 2)
    search.get_by_text("Candidates", exact=False).first.click()
    rows = search.locator("table tbody tr")
    expect(rows).to_have_count(8)
    expect(search).to_contain_text(re.compile(r"below the chosen"))
    shot("candidates")


def test_a_stream_stops_and_frees_the_engine(page: Page, demo: str) -> None:
    page.goto(demo)
    ask(page, "Write a long story about the sea.", tokens=2000)
    expect(column(page, 1).locator(".tokens-token")).not_to_have_count(0, timeout=PATIENCE)
    page.keyboard.press("Escape")
    for number in (1, 2, 3):
        expect(column(page, number)).to_contain_text("Stopped.")
    assert len(column(page, 1).locator(".tokens-text").inner_text()) > 0
    running = page.evaluate(
        """async () => {
            for (let tries = 0; tries < 50; tries++) {
                const text = await (await fetch("/metrics")).text();
                const line = text.split("\\n").find((each) => each.startsWith("trimtab:num_requests_running"));
                if (line.endsWith(" 0.0")) return 0;
                await new Promise((wake) => setTimeout(wake, 100));
            }
            return 1;
        }"""
    )
    assert running == 0


def test_the_conversation_goes_on_and_branches(page: Page, demo: str) -> None:
    page.goto(demo)
    ask(page, "Name a fruit.", tokens=12)
    finished(page, 1)
    finished(page, 2)
    column(page, 2).get_by_role("radio", name="The next prompt goes on from here").check()
    taken = column(page, 2).locator(".tokens-text").inner_text().strip()
    ask(page, "And another one.", tokens=12)
    turns = page.get_by_role("region", name="Conversation").get_by_role("listitem")
    expect(turns).to_have_count(3)
    expect(turns.nth(1)).to_contain_text(taken)
    expect(turns.nth(1)).to_contain_text("best_of_n")
    finished(page, 1)
    finished(page, 2)
    # continue the first answer from its third token in the second column
    beginning = column(page, 1).locator(".tokens-token").nth(2)
    beginning.click()
    page.keyboard.press("Enter")
    page.get_by_role("button", name=re.compile("^In column 2")).click()
    finished(page, 2)
    prefix = column(page, 2).locator(".tokens-prefix").inner_text()
    assert prefix
    assert column(page, 1).locator(".tokens-text").inner_text().startswith(prefix)
    # an edited prompt takes what followed it away
    turns.nth(0).get_by_role("button", name="Edit").click()
    page.get_by_label("Edit the prompt").fill("Name a colour.")
    page.get_by_role("button", name="Ask this instead").click()
    expect(turns).to_have_count(1)
    finished(page, 1)


def test_a_link_brings_the_same_page_back(page: Page, open_page: Callable[..., Page], demo: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(demo)
    for number in (3, 2):
        column(page, number).get_by_role("button", name=f"Remove column {number}").click()
    page.get_by_label("Measured by").select_option("brevity")
    ask(page, "Say hello — 你好 🙂", tokens=8)
    finished(page, 1)
    page.get_by_role("button", name="Copy a link").click()
    link = page.evaluate("navigator.clipboard.readText()")
    other = open_page()
    other.goto(link)
    expect(column(other, 1)).to_contain_text("sample")
    expect(column(other, 2)).to_have_count(0)
    expect(other.get_by_label("Measured by")).to_have_value("brevity")
    expect(other.get_by_role("region", name="Conversation")).to_contain_text("Say hello — 你好 🙂")


@contextmanager
def serving(port: int) -> Iterator["subprocess.Popen[str]"]:
    """`trimtab serve` on a port, from when it listens."""
    command = [sys.executable, "-P", "-c", "from trimtab.server.cli import app; app()", "serve", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert any("http://" in line for line in process.stdout)
            yield process
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_restart_of_the_server_is_survived(page: Page, faults: Faults) -> None:
    faults.allow("ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_INCOMPLETE_CHUNKED_ENCODING")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with serving(port) as process:
        page.goto(address)
        ask(page, "Write a long story about the sea.", tokens=2000)
        expect(column(page, 1).locator(".tokens-token")).not_to_have_count(0, timeout=PATIENCE)
        process.send_signal(signal.SIGKILL)
        process.wait()
        expect(column(page, 1).get_by_role("alert")).to_be_visible()
        assert len(column(page, 1).locator(".tokens-text").inner_text()) > 0, "what had arrived is gone"
        expect(page.get_by_text("The server is away.")).to_be_visible()
    with serving(port):
        expect(page.get_by_text("The server is away.")).to_be_hidden(timeout=PATIENCE)
        page.get_by_label("Max tokens").fill("8")
        page.get_by_label("Max tokens").blur()
        column(page, 1).get_by_role("button", name="Try again").click()
        finished(page, 1)
        expect(column(page, 1).get_by_role("alert")).to_have_count(0)
