"""Guide folders: where one lies, which roles read it, and the ones that are shipped for the demo model."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.guides.card import CARD, Card, Kind

if TYPE_CHECKING:  # it imports torch, and settings do not
    from trimtab.engine.guides.base import Role

ADAPTER: Final = "adapter_config.json"
VALUE_HEAD: Final = "value_head.safetensors"
CONTROL_VECTOR: Final = "control_vector.gguf"
PREFERENCE_HEAD: Final = "preference_head.safetensors"
BLOCKS: Final = "preference_blocks.json"
"""beside an adapter whose rank dimensions belong to attributes"""
TEMPLATE: Final = "chat_template.jinja"
DEMO: Final = "demo"
"""the source of the demo model; its guides are demo:NAME"""
SHIPPED: Final = Path(__file__).parent / DEMO
"""one folder for each guide of the demo model, called as the guide is"""

_ROLES: "Final[Mapping[Kind, tuple[Role, ...]]]" = MappingProxyType(
    {
        "reward": ("reward", "value"),
        "value": ("value",),
        "arm": ("lm",),
        "expert": ("lm",),
        "vector": ("vector",),
        "preference": ("preference",),
        "panacea": ("lm",),
    }
)
"""who reads a kind of guide, the role it was trained for first"""
_CONTENTS: "Final[Mapping[str, tuple[str, tuple[Role, ...]]]]" = MappingProxyType(
    {
        ADAPTER: ("an adapter", ("lm", "reward", "value")),
        VALUE_HEAD: ("a value head", ("value",)),
        CONTROL_VECTOR: ("a control vector", ("vector",)),
        PREFERENCE_HEAD: ("a preference head", ("preference",)),
    }
)
"""the same for folders without a card, by the file that tells them apart"""


def role_of(kind: Kind) -> "Role":
    """The role that a kind of guide was trained for."""
    return _ROLES[kind][0]


def locate(model: str) -> Path:
    """The path behind the `model` of a guide; demo:NAME is a shipped folder, ModelLoadError if there is none."""
    source, _, name = model.partition(":")
    if source != DEMO or not name:
        return Path(model).expanduser()
    names = shipped_guides()
    if name not in names:
        raise ModelLoadError(f"{model!r} is no guide that comes with trimtab: use {', '.join(names) or 'a path'}")
    return SHIPPED / name


def shipped_guides() -> "dict[str, tuple[Role, str]]":
    """Role and `model` of every shipped guide, by its name."""
    shipped: dict[str, tuple[Role, str]] = {}
    for file in sorted(SHIPPED.glob(f"*/{CARD}")):
        card = Card.load(file.parent)
        if card is not None:
            shipped[file.parent.name] = _ROLES[card.kind][0], f"{DEMO}:{file.parent.name}"
    return shipped


def read_card(folder: Path, role: "Role") -> Card | None:
    """The card of a guide's folder; None without one, and for what is no guide's folder (a whole model, a file).

    ModelLoadError if `role` cannot read what the folder holds.
    """
    held = next((_CONTENTS[name] for name in _CONTENTS if (folder / name).is_file()), None)
    if held is None:
        return None
    card = Card.load(folder)
    what, roles = held if card is None else (f"a guide of kind {card.kind}", _ROLES[card.kind])
    if role not in roles:
        raise ModelLoadError(f"{folder} holds {what}: give it the role {roles[0]}")
    return card
