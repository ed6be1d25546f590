"""The playground in a real Chromium, asked of a real server; whatever goes wrong in the page fails its test."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_faults import Faults
from playwright.sync_api import Browser, Page, sync_playwright
from running import Running
from steered import furnish, guides, load

from trimtab.bench.serve import served
from trimtab.llm import LLM
from trimtab.server.page import is_built
from trimtab.server.settings import ServerSettings, Settings

ARTIFACTS = Path(__file__).resolve().parents[2] / "test-artifacts"
NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--no-sandbox",  # CI's user is root
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no other host can be reached
)
FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where Chromium is: the variable CHROMIUM, or one of its names on the path."""
    for picture in ARTIFACTS.glob("failed-*.png"):
        picture.unlink()  # of another day
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one by the variable CHROMIUM")
    return found


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """A running Chromium; of a module alone, since no event loop of asyncio can start beside Playwright's."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def faults() -> Faults:
    """What has gone wrong in the pages of the test so far."""
    return Faults()


@pytest.fixture
def open_page(browser: Browser, faults: Faults, request: pytest.FixtureRequest) -> Iterator[Callable[..., Page]]:
    """Open a page of a browser that knows nothing yet: `open_page(color_scheme="dark")`, with options of a context.

    What goes wrong in it fails the test; of a test that fails, a picture of each page is kept.
    """
    pages: list[Page] = []

    def open_page(**options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(15_000)
        pages.append(context.new_page())
        faults.watch(pages[-1])
        return pages[-1]

    yield open_page
    left = faults.left()
    name = re.sub(r"[^\w-]+", "-", request.node.name).strip("-")[:100]
    for number, page in enumerate(pages, start=1):
        if left or request.node.stash.get(FAILED, False):
            page.screenshot(path=ARTIFACTS / f"failed-{name}-{number}.png", full_page=True)
        page.context.close()
    assert not left, "\n".join(left)


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """An empty page."""
    return open_page()


@pytest.fixture
def shot(page: Page) -> Callable[[str], Path]:
    """Keep a picture of the whole page: `shot("compare")` writes test-artifacts/compare.png."""

    def shot(name: str) -> Path:
        path = ARTIFACTS / f"{name}.png"
        page.screenshot(path=path, full_page=True)
        return path

    return shot


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Remember what came of the test for its fixtures."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """The engine on a tiny model called `base`, with a guide for every role."""
    place = furnish(tmp_path_factory.mktemp("models"))
    with load(place / "base", guides(place)) as llm:
        yield llm


@pytest.fixture(scope="session")
def built() -> None:
    """The page has its libraries."""
    if not is_built():
        pytest.skip("the playground is not built: install Node.js, then `make page`")


@pytest.fixture(scope="session")
def shared(llm: LLM) -> Iterator[Running]:
    """One server for all tests that only ask it things."""
    running = Running(llm, ServerSettings())
    yield running
    running.stop()


@pytest.fixture
def start(llm: LLM) -> Iterator[Callable[..., Running]]:
    """Start a server of one's own: `start({"keys": ...})`, and again where one was: `start(port=before.port)`."""
    started: list[Running] = []

    def start(settings: dict[str, Any] | None = None, port: int = 0) -> Running:
        started.append(Running(llm, Settings.model_validate(settings or {}), port=port))
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture(scope="session")
def demo() -> Iterator[str]:
    """`trimtab serve` on the demo model, a process of its own; its URL. For tests that are marked `demo`."""
    with served("demo") as child:
        yield child.url
