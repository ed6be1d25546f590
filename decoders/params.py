"""What every strategy's parameters share."""

from collections.abc import Collection

from pydantic import BaseModel, ConfigDict

from trimtab.engine.errors import InvalidRequest


class Params(BaseModel):
    """Parameters of one strategy, flat, under the names of its paper; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def check(self, *, choices: int, rewards: Collection[str]) -> None:
        """Raise InvalidRequest if this server or this request cannot run the strategy."""


def require_reward(name: str, rewards: Collection[str]) -> None:
    """Raise InvalidRequest unless a reward guide of this name is configured."""
    if name not in rewards:
        known = ", ".join(sorted(rewards)) or "none (add one under `guides` in the configuration)"
        raise InvalidRequest(f"no reward guide is named {name!r}; configured: {known}", param="decoding.reward")
