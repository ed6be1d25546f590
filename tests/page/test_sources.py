"""The rules that keep the playground's sources whole: what others gave, what is shipped, what its code may not do."""

import glob
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from trimtab.server import page

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "server" / "static"
OURS = sorted(path for path in STATIC.rglob("*") if path.is_file() and STATIC / "lib" not in path.parents)
CODE = [path for path in OURS if path.suffix in (".js", ".html", ".css")]


def read(name: str) -> Any:
    return json.loads((ROOT / name).read_text())


def test_the_lock_file_names_no_host() -> None:
    assert "omit-lockfile-registry-resolved=true" in (ROOT / ".npmrc").read_text().splitlines()
    text = (ROOT / "package-lock.json").read_text()
    packages = {path: each for path, each in json.loads(text)["packages"].items() if path}
    assert packages
    for path, each in packages.items():
        assert "resolved" not in each, path
        assert each["integrity"].startswith("sha512-"), path
    assert "registry" not in text


def test_versions_are_exact_and_those_of_the_lock_file() -> None:
    told = read("package.json")
    assert told["private"] is True
    assert told["type"] == "module"
    lock = read("package-lock.json")["packages"]
    for kind in ("dependencies", "devDependencies"):
        assert lock[""][kind] == told[kind], "run npm install"
        for name, version in told[kind].items():
            assert re.fullmatch(r"\d+\.\d+\.\d+", version), name
            assert lock[f"node_modules/{name}"]["version"] == version


def test_what_is_copied_is_what_the_server_looks_for() -> None:
    text = (ROOT / "server" / "libraries.js").read_text()
    copied = re.findall(r'^  "([\w.-]+)": "([\w-]+)/', text.partition("const LICENSED")[0], re.MULTILINE)
    assert tuple(name for name, _ in copied) == page.LIBRARIES
    licensed = set(json.loads(re.findall(r"const LICENSED = (\[.*\]);", text)[0]))
    assert licensed == read("package.json")["dependencies"].keys() >= {package for _, package in copied}


def test_the_package_holds_every_file_of_the_page() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folder = ROOT / "server"
    names = setuptools["package-data"]["trimtab.server"]
    packed = {folder / found for name in names for found in glob.glob(name, root_dir=folder, recursive=True)}
    assert packed >= set(OURS)
    left_out = {
        path for pattern in setuptools["exclude-package-data"]["trimtab.server"] for path in folder.glob(pattern)
    }
    assert left_out == set((STATIC / "lib").glob("*.d.ts"))
    assert "*.static*" in setuptools["packages"]["find"]["exclude"], "its folders are no packages"
    assert {path.suffix for path in OURS} <= page.TYPES.keys(), "of a kind that the server does not serve"


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(STATIC).as_posix())
def test_code_of_the_page(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|document\.write|\beval\(|new Function\("
    assert not re.findall(unsafe, text), "texts go into the page as text"
    assert not re.findall(r"<style|\sstyle=\"|\son\w+=\"|javascript:", text), "the page's policy refuses it"
    assert not re.findall(r"https?://(?!127\.0\.0\.1|localhost|www\.w3\.org/)[\w.]+", text), (
        "the page asks no other host"
    )


def test_every_file_that_is_named_is_there() -> None:
    for path in CODE:
        if path.suffix == ".html":
            named = [STATIC / name for name in re.findall(r'(?:href|src)="/static/([^"]+)"', path.read_text())]
        else:
            names = re.findall(r'(?:from|import)\s*\(?\s*"(\.[^"]+)"', path.read_text())
            named = [(path.parent / name).resolve() for name in names]
        missing = [name for name in named if not name.is_file() and STATIC / "lib" not in name.parents]
        assert not missing, path
