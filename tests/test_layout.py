"""The rules that keep the layout whole: links, layers, names, sizes, dependencies."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "trimtab"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

LINKS = {name: name for name in ("server", "training", "decoders", "engine", "kernels", "clients")}
LINKS["bench"] = "benchmarks/bench"
LINKS["cluster"] = "deploy/ray"  # `import ray` is Ray's own
LINKED = set(LINKS)
TOP = "llm"  # the files that lie in src/trimtab itself
PLUGINS = {"vllm"}  # packages of src/trimtab itself: what other programs load

# Who may import whom. server holds the command line, hence clients, training and bench, which in turn writes what
# server/frontier.py reads.
LAYERS = {
    "cluster": {TOP, "server", "decoders", "engine", "kernels"},
    "server": {TOP, "bench", "training", "decoders", "engine", "kernels", "clients"},
    "bench": {TOP, "server", "decoders", "engine", "kernels", "clients"},
    "training": {TOP, "decoders", "engine", "kernels"},
    "vllm": {"decoders", "engine", "kernels"},
    TOP: {"decoders", "engine", "kernels"},
    "decoders": {"engine", "kernels"},
    "engine": {"kernels"},
    "kernels": set(),
    "clients": set(),
}
SERVER_ONLY = {"fastapi", "starlette", "uvicorn", "asyncio", "anyio"}

# Dependencies that no file imports, and why they are needed all the same.
NEVER_IMPORTED = {
    "accelerate": "transformers reads GGUF files through it",
    "uvloop": "uvicorn picks it as its event loop when it is there",
    "httptools": "uvicorn picks it as its parser when it is there",
}
# Imported names that come with a declared dependency as part of its public interface.
COMES_WITH = {
    "click": "typer",
    "opentelemetry": "fastapi",
    "pydantic_core": "pydantic",
    "rich": "typer",
    "starlette": "fastapi",
    "tokenizers": "transformers",
    "yaml": "pydantic_settings",
}


def imported(tree: ast.AST) -> Iterator[str]:
    """The dotted names a module imports; of `from a import b` it is `a.b`, of a relative import `.a`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def unit_of(name: str) -> str | None:
    """The part of trimtab that a dotted name belongs to; None for a name of someone else's."""
    first, _, rest = name.partition(".")
    if first != "trimtab":
        return None
    second = rest.partition(".")[0]
    return second if second in LINKED | PLUGINS else TOP


def top_of(name: str) -> str:
    return name.partition(".")[0]


def code() -> dict[str, dict[Path, ast.Module]]:
    """The parsed files of the package by unit."""
    files = {unit: sorted((ROOT / folder).rglob("*.py")) for unit, folder in LINKS.items()}
    files[TOP] = sorted(PACKAGE.glob("*.py"))
    files |= {plugin: sorted((PACKAGE / plugin).rglob("*.py")) for plugin in PLUGINS}
    return {unit: {path: ast.parse(path.read_text()) for path in paths} for unit, paths in files.items()}


def every_file() -> list[Path]:
    """Every Python file of the repository, once."""
    apart = {"src", "build", "dist"}
    folders = [f for f in ROOT.iterdir() if f.is_dir() and f.name not in apart and not f.name.startswith(".")]
    ours = [folder for folder in folders if not (folder / "pyvenv.cfg").exists()]
    plugins = (path for plugin in PLUGINS for path in (PACKAGE / plugin).rglob("*.py"))
    return sorted([*PACKAGE.glob("*.py"), *plugins, *(path for folder in ours for path in folder.rglob("*.py"))])


CODE = code()


def violations(forbidden: dict[str, set[str]]) -> list[str]:
    """The imports of a top-level name that the unit holding the file may not import."""
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for unit, files in CODE.items()
        for path, tree in files.items()
        for name in imported(tree)
        if top_of(name) in forbidden[unit]
    ]


@pytest.mark.parametrize(
    ("source", "names", "unit"),
    [
        ("import trimtab.server.app as app", ["trimtab.server.app"], "server"),
        ("from trimtab import engine", ["trimtab.engine"], "engine"),
        ("from trimtab import LLM", ["trimtab.LLM"], TOP),
        ("import trimtab", ["trimtab"], TOP),
        ("def f():\n    from trimtab.llm import LLM", ["trimtab.llm.LLM"], TOP),
        ("import kernels", ["kernels"], None),
    ],
)
def test_reader_of_imports_sees_every_form(source: str, names: list[str], unit: str | None) -> None:
    assert list(imported(ast.parse(source))) == names
    assert unit_of(names[0]) == unit


def test_package_links_to_the_code_folders() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == LINKED | PLUGINS
    for name, folder in LINKS.items():
        link = PACKAGE / name
        assert link.is_symlink(), f"src/trimtab/{name} is a copy: make it a link again"
        assert link.readlink() == Path("../..") / folder
        assert (ROOT / folder).is_dir()


def test_kernels_is_no_regular_package() -> None:
    # transformers imports a regular package of that name when the root is on the path, and crashes.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    for name in LINKED - {"kernels"}:
        assert (PACKAGE / name / "__init__.py").exists()


def test_imports_point_down() -> None:
    upward = [
        f"{path.relative_to(ROOT)} ({unit}) imports {name}"
        for unit, files in CODE.items()
        for path, tree in files.items()
        for name in imported(tree)
        if unit_of(name) not in {None, unit, *LAYERS[unit]}
    ]
    assert not upward


def test_the_benchmark_knows_the_server_by_its_profile_alone() -> None:
    """All else it learns through HTTP, as any client."""
    names = {name for tree in CODE["bench"].values() for name in imported(tree) if name.startswith("trimtab.server")}
    assert {name.removeprefix("trimtab.server.").partition(".")[0] for name in names} == {"frontier"}


def test_web_framework_and_async_stay_in_server() -> None:
    """But for asyncio itself where programs wait for other servers: the clients, and the engine's calls to a base."""
    outside = {"cluster": set(), "server": set(), "clients": SERVER_ONLY - {"asyncio"}}
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for unit, files in CODE.items()
        for path, tree in files.items()
        for name in imported(tree)
        if top_of(name) in outside.get(unit, SERVER_ONLY) - ({"asyncio"} if calls_out(path) else set())
    ]
    assert not found
    coroutines = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for unit, files in CODE.items()
        if unit not in outside
        for path, tree in files.items()
        if not calls_out(path)
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFunctionDef | ast.Await)
    ]
    assert not coroutines


def calls_out(path: Path) -> bool:
    """Whether a file keeps many calls to another server under way at once."""
    return path.is_relative_to(ROOT / "engine" / "remote")


def test_triton_stays_in_kernels() -> None:
    assert not violations({unit: set() if unit == "kernels" else {"triton"} for unit in CODE})


def test_every_file_is_linted_once_where_it_lies() -> None:
    excluded = PROJECT["tool"]["ruff"]["extend-exclude"]
    assert set(excluded) == {f"src/trimtab/{name}" for name in LINKED}


def test_no_bare_and_no_relative_imports() -> None:
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in every_file()
        for name in imported(ast.parse(path.read_text()))
        if name.startswith(".") or top_of(name) in LINKED
    ]
    assert not found, "write trimtab.NAME"


def test_ruff_bans_the_bare_names() -> None:
    banned = PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(banned) >= LINKED
    assert "TID" in PROJECT["tool"]["ruff"]["lint"]["select"]


def test_build_backend_keeps_links() -> None:
    assert PROJECT["build-system"]["build-backend"] == "setuptools.build_meta"
    assert PROJECT["tool"]["setuptools"]["packages"]["find"]["namespaces"] is True


def test_triton_stays_in_files_of_its_own() -> None:
    for files in CODE.values():
        for path, tree in files.items():
            if not path.stem.endswith("_triton"):
                assert not {name for name in imported(tree) if name.split(".")[0] == "triton"}, path


def test_files_stay_short() -> None:
    lengths = {
        path.relative_to(ROOT): len(path.read_text().splitlines())
        for path in every_file()
        if (ROOT / "tests") not in path.parents
    }
    assert not {path: lines for path, lines in lengths.items() if lines > 450}


def names_of(requirements: list[str]) -> set[str]:
    """The packages of requirements, as they are imported."""
    return {re.split(r"[^\w-]", requirement)[0].replace("-", "_").lower() for requirement in requirements}


def foreign_imports(files: dict[Path, ast.Module]) -> set[str]:
    """The packages of others that files import."""
    used = {top_of(name).lower() for tree in files.values() for name in imported(tree)}
    return used - {"trimtab"} - set(sys.stdlib_module_names)


def test_dependencies_and_imports_agree() -> None:
    always = names_of(PROJECT["project"]["dependencies"])
    optional = PROJECT["project"]["optional-dependencies"]
    parts = {"training": "train", "bench": "bench", "cluster": "ray", "vllm": "vllm"}
    extras = {unit: names_of(optional[extra]) for unit, extra in parts.items()}
    foreign = {unit: foreign_imports(files) for unit, files in CODE.items()}
    everywhere = set().union(*(names for unit, names in foreign.items() if unit not in extras))

    assert always - everywhere == set(NEVER_IMPORTED), "not imported: drop it, or say why it stays"
    for unit, extra in extras.items():
        assert extra <= foreign[unit] - everywhere, f"imported by more than {unit}, or not at all"
    for names, declared in ((everywhere, always), *((foreign[unit], always | extra) for unit, extra in extras.items())):
        undeclared = {name for name in names - declared if COMES_WITH.get(name) not in declared}
        assert not undeclared, "imported: add it to pyproject.toml and constraints.txt"


def test_the_package_holds_every_file_of_the_shipped_guides() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    folder = ROOT / "engine" / "guides"
    shipped = {path for path in (folder / "demo").rglob("*") if path.is_file()}
    packed = {path for pattern in setuptools["package-data"]["trimtab.engine.guides"] for path in folder.glob(pattern)}
    assert packed >= shipped, "name their kind in package-data, or take them out of engine/guides/demo"
    assert sum(path.stat().st_size for path in shipped) < 10_000_000
    assert "*.guides.demo*" in setuptools["packages"]["find"]["exclude"], "its folders are no packages"
