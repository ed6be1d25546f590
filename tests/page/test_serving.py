"""How the server serves the playground: to whom, with which headers, and nothing but its files."""

import shutil
from collections.abc import Callable
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page
from wire import metrics

from trimtab.server import page as playground

Start = Callable[..., Any]
POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the page, with small files for libraries, whether or not they were fetched."""
    folder = tmp_path / "static"
    shutil.copytree(playground.FOLDER, folder, ignore=shutil.ignore_patterns("lib"))
    (folder / "lib").mkdir()
    for name in playground.LIBRARIES:
        (folder / "lib" / name).write_text(f"/* {name} */\n")
    monkeypatch.setattr(playground, "FOLDER", folder)
    return folder


def raw(port: int, path: str, method: str = "GET") -> int:
    """The status of a request whose path is sent as it stands."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/static/index.html", "text/html; charset=utf-8"),
        ("/static/main.js", "text/javascript; charset=utf-8"),
        ("/static/lib/uplot.js", "text/javascript; charset=utf-8"),
        ("/static/styles/base.css", "text/css; charset=utf-8"),
        ("/static/icon.svg", "image/svg+xml"),
    ],
)
def test_files_come_with_their_kind_and_their_policy(shared: Any, folder: Path, path: str, kind: str) -> None:
    answer = httpx2.get(shared.url + path)
    assert answer.status_code == 200
    assert answer.content == (folder / ("index.html" if path == "/" else path.removeprefix("/static/"))).read_bytes()
    assert answer.headers["content-type"] == kind
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    head = httpx2.head(shared.url + path)
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers, "date": "", "x-request-id": ""} == {**answer.headers, "date": "", "x-request-id": ""}


def test_a_browser_that_has_the_file_is_not_sent_it_again(shared: Any, folder: Path) -> None:
    url = shared.url + "/static/main.js"
    etag = httpx2.get(url).headers["etag"]
    for known in (etag, f'"other", W/{etag}'):
        again = httpx2.get(url, headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
        assert again.headers["content-security-policy"] == POLICY
    file = folder / "main.js"
    file.write_text(file.read_text() + "// changed\n")
    changed = httpx2.get(url, headers={"if-none-match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


@pytest.mark.parametrize(
    "path",
    [
        "/static/../page.py",
        "/static/..%2fpage.py",
        "/static/%2e%2e/secret.js",
        "/static/lib/../../secret.js",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/link.js",
        "/static/linked/secret.js",
        "/static/main.js%00.css",
        "/static/" + "a" * 5000 + ".js",
        "/static/lib",
        "/static/",
        "/static",
        "/static/none.js",
        "/static/main.js/x.js",
        "/static/hidden.py",
        "/static/lib/preact.d.ts",
    ],
)
def test_nothing_but_files_of_the_page_is_served(shared: Any, folder: Path, path: str) -> None:
    secret = folder.parent / "secret.js"
    secret.write_text("// secret\n")
    (folder / "link.js").symlink_to(secret)
    (folder / "linked").symlink_to(folder.parent)
    (folder / "hidden.py").write_text("")
    (folder / "lib" / "preact.d.ts").write_text("")
    assert raw(shared.port, path) == 404


@pytest.mark.parametrize("path", ["/", "/static/main.js"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_files_are_only_read(shared: Any, method: str, path: str) -> None:
    answer = httpx2.request(method, shared.url + path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"


def test_the_page_is_open_where_the_api_is_not(start: Start, folder: Path) -> None:
    url = start({"keys": {"ann": {"sha256": sha256(b"secret").hexdigest()}}}).url
    assert httpx2.get(url + "/v1/models").status_code == 401
    assert httpx2.get(url + "/").status_code == httpx2.get(url + "/static/main.js").status_code == 200


@pytest.mark.parametrize("missing", playground.LIBRARIES)
def test_without_a_library_the_page_says_how_to_build_it(shared: Any, folder: Path, missing: str) -> None:
    (folder / "lib" / missing).unlink()
    answer = httpx2.get(shared.url + "/")
    assert answer.status_code == 200
    assert "make page" in answer.text
    assert answer.headers["content-security-policy"] == POLICY
    (folder / "lib" / missing).write_text("")  # fetched while the server runs
    assert httpx2.get(shared.url + "/").content == (folder / "index.html").read_bytes()


def test_a_setting_turns_the_page_off(start: Start) -> None:
    url = start({"server": {"playground": False}}).url
    for path in ("/", "/static/main.js"):
        answer = httpx2.get(url + path)
        assert answer.status_code == 404
        assert answer.json()["error"]["message"].startswith(f"nothing is served at {path}")


def test_page_loads_are_counted_by_route_and_no_part_of_the_api(shared: Any, folder: Path) -> None:
    def count(route: str) -> float:
        return metrics(shared.url).get(f'trimtab:http_responses_total{{route="{route}",status="200"}}', 0.0)

    before = count("/"), count("/static/{path:path}")
    for path in ("/", "/static/main.js", "/static/styles/base.css"):
        httpx2.get(shared.url + path)
    assert (count("/"), count("/static/{path:path}")) == (before[0] + 1, before[1] + 2)
    paths = httpx2.get(shared.url + "/openapi.json").json()["paths"]
    assert "/" not in paths
    assert not any(path.startswith("/static") for path in paths)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("fault", "script"),
    [
        ("console: broken", "console.error('broken')"),
        ("script: Error: late", "setTimeout(() => { throw new Error('late') })"),
        ("script: Error: lost", "Promise.reject(new Error('lost')) && null"),
        ("inline script", "document.body.append(Object.assign(document.createElement('script'), {text: 'top.x = 1'}))"),
        ("inline style", "document.body.setAttribute('style', 'color: red')"),
        ("127.0.0.2", "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.2/x.png'}))"),
        ("request to another host", "location.href = 'http://127.0.0.2:9/'"),
        ("404", "fetch('/none')"),
    ],
)
def test_what_goes_wrong_in_a_page_is_noticed(page: Page, faults: Any, shared: Any, fault: str, script: str) -> None:
    page.goto(shared.url + "/static/unbuilt.html")
    page.wait_for_load_state("networkidle")
    assert faults.left() == []
    page.evaluate(f"() => {{ {script} }}")
    page.wait_for_timeout(200)
    assert any(fault in each for each in faults.left()), faults.left()
    faults.allow("")
    assert faults.left() == []


@pytest.mark.browser
def test_the_page_that_stands_in(page: Page, shared: Any, folder: Path, shot: Callable[[str], Path]) -> None:
    (folder / "lib" / "preact.js").unlink()
    page.goto(shared.url)
    assert page.get_by_role("heading").inner_text() == "The playground is not built yet"
    assert shot("unbuilt").stat().st_size > 1000


@pytest.mark.browser
def test_the_libraries_keep_to_the_policy(page: Page, shared: Any, built: None) -> None:
    page.goto(shared.url + "/static/unbuilt.html")
    drawn = page.evaluate(
        """async () => {
            const { html, render } = await import("/static/lib/preact.js");
            const { default: Plot } = await import("/static/lib/uplot.js");
            const { stratify } = await import("/static/lib/d3-hierarchy.js");
            const { createParser } = await import("/static/lib/eventsource-parser.js");
            render(html`<p id="here" style=${{ width: "3px" }}>${"<b>text</b>"}</p>`, document.body);
            const size = { width: 300, height: 200, series: [{}, { stroke: "red" }], scales: { x: { time: false } } };
            new Plot(size, [[1, 2], [3, 4]], document.body);
            const tree = stratify()([{ id: "a" }, { id: "b", parentId: "a" }]);
            const events = [];
            createParser({ onEvent: (event) => events.push(event.data) }).feed("data: told\\n\\n");
            const here = document.querySelector("#here");
            const canvases = document.querySelectorAll("canvas").length;
            return [here.style.width, here.textContent, canvases, tree.height, events];
        }"""
    )
    assert drawn == ["3px", "<b>text</b>", 1, 1, ["told"]]


@pytest.mark.browser
def test_the_first_paint_is_quick(open_page: Callable[..., Page], shared: Any, built: None) -> None:
    paints = []
    for _ in range(5):
        page = open_page()
        page.goto(shared.url, wait_until="networkidle")
        paints.append(page.evaluate("performance.getEntriesByType('paint')[0].startTime"))
    assert min(paints) < 300, paints  # the others measure what else the machine does
