"""The `select` of a request: a rule's name, or an object with its parameters."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, get_args

from pydantic import Field, ValidationError

from trimtab.decoders.invalid import invalid, meant
from trimtab.decoders.select.abstain import Abstain, AnswerRule
from trimtab.decoders.select.rule import Rule
from trimtab.engine.errors import InvalidRequest

AnyRule = Annotated[AnswerRule | Abstain, Field(discriminator="rule")]


def _by_name(rules: Iterable[type[Rule]]) -> Mapping[str, type[Rule]]:
    return {rule.model_fields["rule"].default: rule for rule in rules}


_ANSWERING = _by_name(get_args(get_args(AnswerRule)[0]))
RULES = {**_ANSWERING, **_by_name([Abstain])}
"""every rule, by name"""


def parse_rule(value: object) -> Rule:
    """The rule that a request's `select` means: a name, or an object as {"rule": "soft", "temperature": 0.5}.

    Raises InvalidRequest that names the key by its path and the nearest valid one.
    """
    return _parse(value, RULES, "decoding.select")


def _parse(value: object, rules: Mapping[str, type[Rule]], path: str) -> Rule:
    given: dict[Any, Any] = {"rule": value} if isinstance(value, str) else {}
    if isinstance(value, Mapping):
        given = dict(value)
    if "rule" not in given:
        raise InvalidRequest(
            f'{path} is the name of a rule, or an object as {{"rule": "soft", "temperature": 0.5}}', param=path
        )
    name = given["rule"]
    if not isinstance(name, str) or name not in rules:
        raise InvalidRequest(
            f"unknown rule {name!r}{meant(str(name), rules)}; {path} takes: {', '.join(rules)}",
            param=path if isinstance(value, str) else f"{path}.rule",
        )
    fields = rules[name].model_fields
    for key in given:
        if key not in fields:
            raise InvalidRequest(
                f"unknown key {key!r} in {path}{meant(str(key), fields)}; rule {name!r} takes: {', '.join(fields)}",
                param=f"{path}.{key}",
            )
    if "then" in given:
        given["then"] = _parse(given["then"], _ANSWERING, f"{path}.then")
    try:
        return rules[name].model_validate(given)
    except ValidationError as error:
        raise invalid(error, path) from None
