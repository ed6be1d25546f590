"""The `decoding` object of a request: validated, resolved, and turned into a program."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast

from pydantic import ValidationError

from trimtab.decoders.params import Params
from trimtab.decoders.registry import strategies
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.program import Program


@dataclass(frozen=True, slots=True)
class DecodingSpec:
    """A strategy with all its parameters filled in."""

    strategy: str
    params: Params

    @classmethod
    def parse(cls, decoding: Mapping[str, Any] | None) -> "DecodingSpec":
        """Validate a `decoding` object as it came over the wire; absent means plain sampling.

        Raises InvalidRequest that names the key and the nearest valid one.
        """
        given = dict(decoding or {})
        name = given.pop("strategy", "sample")
        known = strategies()
        if not isinstance(name, str) or name not in known:
            raise InvalidRequest(
                f"unknown strategy {name!r}{_nearest(str(name), known)}; GET /v1/strategies lists them",
                param="decoding.strategy",
            )
        params = known[name].params
        for key in given:
            if key not in params.model_fields:
                valid = ", ".join(["strategy", *params.model_fields])
                raise InvalidRequest(
                    f"unknown decoding key {key!r}{_nearest(key, ['strategy', *params.model_fields])}; "
                    f"strategy {name!r} takes: {valid}",
                    param=f"decoding.{key}",
                )
        try:
            return cls(name, params.model_validate(given))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, ("decoding", *first["loc"])))
            raise InvalidRequest(f"{where}: {first['msg']}", param=where) from None

    @property
    def program(self) -> Program:
        return cast(Program, self.params)

    def dump(self) -> dict[str, Any]:
        """As it is echoed in the response."""
        return {"strategy": self.strategy, **self.params.model_dump()}


def _nearest(key: str, known: Any) -> str:
    close = get_close_matches(key, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]!r}?" if close else ""
