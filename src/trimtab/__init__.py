"""Inference-time alignment: a frozen language model, steered while it decodes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.engine.grammar import Grammar
    from trimtab.engine.sampling import SamplingParams
    from trimtab.engine.settings import EngineSettings
    from trimtab.llm import LLM

__all__ = ["LLM", "EngineSettings", "Grammar", "SamplingParams"]

_HOMES = {
    "LLM": "trimtab.llm",
    "Grammar": "trimtab.engine.grammar",
    "SamplingParams": "trimtab.engine.sampling",
    "EngineSettings": "trimtab.engine.settings",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and the command line's help needs none of it."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
