"""The `decoding` object of a request: validated, resolved, and turned into a program and parts that steer it."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, cast

from pydantic import ValidationError

from trimtab.decoders.params import Params
from trimtab.decoders.registry import Strategy, strategies
from trimtab.decoders.search.sample import Sample
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.program import Program

MAX_PARTS = 8


@dataclass(frozen=True, slots=True)
class DecodingSpec:
    """A strategy and the parts listed beside it, with all their parameters filled in."""

    strategy: str
    params: Params
    """a program, or a part that steers plain sampling"""
    listed: tuple[tuple[str, Steer], ...] = ()
    """method and parameters, in the order of `steer`; the order changes nothing"""
    trace: Literal["tokens"] | None = None
    """tokens: report what shaped each token"""

    @classmethod
    def parse(cls, decoding: Mapping[str, Any] | None) -> "DecodingSpec":
        """Validate a `decoding` object as it came over the wire; absent means plain sampling.

        Raises InvalidRequest that names the key and the nearest valid one.
        """
        given = dict(decoding or {})
        known = strategies()
        chosen = _known(given.pop("strategy", "sample"), known, "decoding.strategy")
        parts = given.pop("steer", [])
        trace = given.pop("trace", None)
        params = _validate(chosen, given, "decoding", ("strategy", "steer", "trace"))
        if trace not in (None, "tokens"):
            raise InvalidRequest(f"trace is {trace!r}: make it 'tokens' or leave it out", param="decoding.trace")
        if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
            raise InvalidRequest('steer is a list of parts, as [{"method": "genarm", ...}]', param="decoding.steer")
        listed = tuple(_part(part, known, f"decoding.steer.{i}") for i, part in enumerate(parts))
        spec = cls(chosen.name, params, listed, trace)
        if len(spec.parts) > MAX_PARTS:
            raise InvalidRequest(
                f"the request has {len(spec.parts)} parts that steer and may have {MAX_PARTS}", param="decoding.steer"
            )
        return spec

    @property
    def program(self) -> Program:
        """The search; plain sampling where the strategy is one that steers."""
        return Sample() if isinstance(self.params, Steer) else cast(Program, self.params)

    @property
    def parts(self) -> tuple[Steer, ...]:
        """What steers the next token, that of `strategy` first."""
        return tuple(part for _, part in self._located)

    @property
    def temperature(self) -> float | None:
        """Temperature of the strategy, or the first part, whose paper has one, for requests that set none."""
        named = (self.params, *(part for _, part in self.listed))
        return next((each.temperature for each in named if each.temperature is not None), None)

    def check(self, *, choices: int, rewards: Collection[str]) -> None:
        """Raise InvalidRequest if this server or this request cannot run the strategy."""
        self.params.check(choices=choices, rewards=rewards)

    def steer(self, draft: Draft) -> None:
        """Let every part ask `draft` for what it needs; errors name the part's place in the request."""
        for path, part in self._located:
            draft.where = path
            part.steer(draft)

    def dump(self) -> dict[str, Any]:
        """As it is echoed in the response; `parse` of it gives an equal spec."""
        told: dict[str, Any] = {"strategy": self.strategy, **self.params.model_dump()}
        if self.listed:
            told["steer"] = [{"method": method, **part.model_dump()} for method, part in self.listed]
        if self.trace is not None:
            told["trace"] = self.trace
        return told

    @property
    def _located(self) -> list[tuple[str, Steer]]:
        """The parts, each with its path."""
        first = [("decoding", self.params)] if isinstance(self.params, Steer) else []
        return first + [(f"decoding.steer.{i}", part) for i, (_, part) in enumerate(self.listed)]


def _known(name: object, known: Mapping[str, Strategy], path: str) -> Strategy:
    if not isinstance(name, str) or name not in known:
        raise InvalidRequest(
            f"unknown strategy {name!r}{_nearest(str(name), known)}; GET /v1/strategies lists them", param=path
        )
    return known[name]


def _part(part: Mapping[str, Any], known: Mapping[str, Strategy], path: str) -> tuple[str, Steer]:
    given = dict(part)
    if "method" not in given:
        raise InvalidRequest(f"{path} names no strategy: give it a method", param=f"{path}.method")
    chosen = _known(given.pop("method"), known, f"{path}.method")
    if chosen.kind != "steer":
        raise InvalidRequest(
            f"{chosen.name!r} works on whole answers: name it as `strategy`, and in `steer` what shapes the next token",
            param=f"{path}.method",
        )
    return chosen.name, cast(Steer, _validate(chosen, given, path, ("method",)))


def _validate(chosen: Strategy, given: Mapping[str, Any], path: str, reserved: tuple[str, ...]) -> Params:
    """The parameters of a strategy; InvalidRequest that names the key by its path."""
    valid = [*reserved, *chosen.params.model_fields]
    for key in given:
        if key not in valid:
            raise InvalidRequest(
                f"unknown decoding key {key!r}{_nearest(key, valid)}; strategy {chosen.name!r} takes: "
                + ", ".join(valid),
                param=f"{path}.{key}",
            )
    try:
        return chosen.params.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (path, *first["loc"])))
        raise InvalidRequest(f"{where}: {first['msg'].removeprefix('Value error, ')}", param=where) from None


def _nearest(key: str, known: Iterable[str]) -> str:
    close = get_close_matches(key, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]!r}?" if close else ""
