"""What may change while the server runs: presets, policies and keys, checked as a whole and replaced as a whole."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from trimtab.decoders.named import named
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.server.auto import check, check_profile, differences, is_auto
from trimtab.server.callers import Caller, unauthorized
from trimtab.server.frontier import Frontier, InvalidProfile
from trimtab.server.keys import Key, KeyMissing, bearer, owner
from trimtab.server.nearest import hint
from trimtab.server.policy import Policy
from trimtab.server.presets import Preset
from trimtab.server.settings import InvalidSettings, Settings

if TYPE_CHECKING:
    from trimtab.llm import LLM

log = logging.getLogger("trimtab.server")


@dataclass(frozen=True, slots=True)
class Rules:
    """Presets, policies, callers and the profile of `auto`, of one configuration."""

    presets: Mapping[str, Preset]
    policies: Mapping[str, Policy]
    callers: Mapping[str, Caller]
    frontier: Frontier | None
    """what strategy `auto` chooses from"""
    everybody: Caller | None
    """who calls without a key; None where keys are needed"""
    _digests: Mapping[str, bytes]
    _admin: bytes | None

    @classmethod
    def of(
        cls,
        settings: Settings,
        llms: Mapping[str, "LLM"],
        *,
        frontier: Frontier | None = None,
        running: bool = False,
    ) -> Self:
        """Check the configuration against the models served; raises InvalidSettings that names the setting.

        `frontier` is the profile of `settings.auto` if it was read before. Where the server is `running` already, its
        model may have been taken out of service, which is a warning.
        """
        frontier = frontier or profile(settings.auto, llms)
        for problem in problems(settings, llms, frontier, running=running):
            raise InvalidSettings(problem)
        if frontier is not None and frontier.model not in llms:
            log.warning("nobody can ask for auto: %s", _unserved(frontier, llms))
        policies = settings.policies

        def caller(name: str, policy: str | None) -> Caller:
            chosen = policy or settings.default_policy
            return Caller(name, chosen, None if chosen is None else policies[chosen])

        keys = settings.keys
        return cls(
            presets=settings.presets,
            policies=policies,
            frontier=frontier,
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

    def users(self, guide: str, llm: "LLM") -> list[str]:
        """The presets, settings of `auto` and policies that name a guide of a model."""
        personal = llm.personal(None)  # what preferences of presets may refer to
        floors = {name: policy.floor for name, policy in self.policies.items()}
        decodings = {f"preset {name}": each.decoding for name, each in self.presets.items()}
        if self.frontier is not None and self.frontier.model == llm.model_name:
            decodings |= {f"setting {each.name} of auto": each.decoding for each in self.frontier.settings}
        named_by = [
            user
            for user, decoding in decodings.items()
            if not is_auto(decoding) and guide in named(DecodingSpec.parse(decoding, personal))
        ]
        return named_by + [f"policy {name}" for name, floor in floors.items() if floor and guide in floor.guides]

    def check_admin(self, authorization: str | None) -> None:
        """Raise a 401 unless the header holds the operator's key."""
        key = bearer(authorization)
        if self._admin is None or key is None or owner(key, {"admin": self._admin}) is None:
            raise unauthorized(authorization)


def problems(
    settings: Settings, llms: Mapping[str, "LLM"], frontier: Frontier | None, *, running: bool = False
) -> Iterator[str]:
    """What is wrong with presets, policies, keys and the profile, a line each; `running` as for Rules."""
    yield from _references(settings)
    yield from _keys(settings)
    if frontier is not None:
        try:
            if frontier.model in llms:
                check_profile(frontier, llms[frontier.model])
            elif not running:
                yield f"setting auto: {_unserved(frontier, llms)}: measure anew"
        except InvalidProfile as error:
            yield f"setting auto: {error}"
    for model in llms.values():
        for name, preset in settings.presets.items():
            try:
                if is_auto(preset.decoding):
                    check(preset.decoding, frontier)
                else:
                    model.check(preset.decoding)
            except InvalidRequest as error:
                yield f"preset {name}: {error}"
        for name, policy in settings.policies.items():
            try:
                policy.check(model, settings.presets)
            except InvalidRequest as error:
                yield f"policy {name}: {error}"


def profile(path: Path | None, llms: Mapping[str, "LLM"]) -> Frontier | None:
    """The profile of `auto`, if there is a file of one; the log says what is different here. Raises InvalidSettings."""
    if path is None:
        return None
    try:
        frontier = Frontier.read(path)
    except InvalidProfile as error:
        raise InvalidSettings(f"setting auto: {error}") from None
    llm = llms.get(frontier.model)
    if llm is not None and (different := differences(frontier, llm)):
        log.warning("auto: latencies may not be those of its profile, which was measured on %s", "; ".join(different))
    return frontier


def _unserved(frontier: Frontier, llms: Mapping[str, "LLM"]) -> str:
    return f"the profile was measured on the model {frontier.model!r} and served is {', '.join(llms) or 'none'}"


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
