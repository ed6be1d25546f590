"""Which answers of a pool are returned: the `select` of a request."""

from trimtab.decoders.select.by_reward import Argmax
from trimtab.decoders.select.guarded import Guard, Guarded, Watch
from trimtab.decoders.select.parse import AnyRule, parse_rule
from trimtab.decoders.select.rule import Entry, Rule

__all__ = ["AnyRule", "Argmax", "Entry", "Guard", "Guarded", "Rule", "Watch", "parse_rule"]
