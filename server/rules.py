"""What may change while the server runs: presets, policies and keys, checked as a whole and replaced as a whole."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from trimtab.decoders.named import named
from trimtab.decoders.preference import Personal
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.server.callers import Caller, unauthorized
from trimtab.server.keys import Key, KeyMissing, bearer, owner
from trimtab.server.nearest import hint
from trimtab.server.policy import Policy
from trimtab.server.presets import Preset
from trimtab.server.settings import InvalidSettings, Settings

if TYPE_CHECKING:
    from trimtab.llm import LLM


@dataclass(frozen=True, slots=True)
class Rules:
    """Presets, policies and callers of one configuration."""

    presets: Mapping[str, Preset]
    policies: Mapping[str, Policy]
    callers: Mapping[str, Caller]
    everybody: Caller | None
    """who calls without a key; None where keys are needed"""
    _digests: Mapping[str, bytes]
    _admin: bytes | None

    @classmethod
    def of(cls, settings: Settings, llms: Mapping[str, "LLM"]) -> Self:
        """Check the configuration against the models served; raises InvalidSettings that names the setting."""
        for problem in problems(settings, llms):
            raise InvalidSettings(problem)
        policies = settings.policies

        def caller(name: str, policy: str | None) -> Caller:
            chosen = policy or settings.default_policy
            return Caller(name, chosen, None if chosen is None else policies[chosen])

        keys = settings.keys
        return cls(
            presets=settings.presets,
            policies=policies,
            callers={name: caller(name, key.policy) for name, key in keys.items()},
            everybody=None if keys else caller(Caller().name, None),
            _digests={name: key.digest() for name, key in keys.items()},
            _admin=None if settings.admin_key is None else settings.admin_key.digest(),
        )

    def caller(self, authorization: str | None) -> Caller:
        """Who sent this header; raises a 401 for nobody that is known."""
        if self.everybody is not None:
            return self.everybody
        key = bearer(authorization)
        name = None if key is None else owner(key, self._digests)
        if name is None:
            raise unauthorized(authorization)
        return self.callers[name]

    def users(self, guide: str, personal: Personal) -> list[str]:
        """The presets and policies that name a guide; `personal` is what preferences of presets may refer to."""
        floors = {name: policy.floor for name, policy in self.policies.items()}
        specs = {name: DecodingSpec.parse(each.decoding, personal) for name, each in self.presets.items()}
        presets = [f"preset {name}" for name, spec in specs.items() if guide in named(spec)]
        return presets + [f"policy {name}" for name, floor in floors.items() if floor and guide in floor.guides]

    def check_admin(self, authorization: str | None) -> None:
        """Raise a 401 unless the header holds the operator's key."""
        key = bearer(authorization)
        if self._admin is None or key is None or owner(key, {"admin": self._admin}) is None:
            raise unauthorized(authorization)


def problems(settings: Settings, llms: Mapping[str, "LLM"]) -> Iterator[str]:
    """What is wrong with presets, policies and keys, a line each."""
    yield from _references(settings)
    yield from _keys(settings)
    for model in llms.values():
        for name, preset in settings.presets.items():
            try:
                model.check(preset.decoding)
            except InvalidRequest as error:
                yield f"preset {name}: {error}"
        for name, policy in settings.policies.items():
            try:
                policy.check(model, settings.presets)
            except InvalidRequest as error:
                yield f"policy {name}: {error}"


def _references(settings: Settings) -> Iterator[str]:
    """Names of policies that do not exist."""
    wanted = {f"keys.{name}.policy": key.policy for name, key in settings.keys.items()}
    for where, policy in {"default_policy": settings.default_policy, **wanted}.items():
        if policy is not None and policy not in settings.policies:
            yield f"setting {where}: there is no policy {policy!r}; {hint(policy, settings.policies)}"


def _keys(settings: Settings) -> Iterator[str]:
    """Keys that cannot be read, and keys that are the same."""
    seen: dict[bytes, str] = {}
    keys: dict[str, Key] = {f"keys.{name}": key for name, key in settings.keys.items()}
    if settings.admin_key is not None:
        keys["admin_key"] = settings.admin_key
    for where, key in keys.items():
        try:
            digest = key.digest()
        except KeyMissing as error:
            yield f"setting {where}: {error}"
            continue
        if digest in seen:
            yield f"settings {seen[digest]} and {where} are the same key: make one for each"
        seen[digest] = where
