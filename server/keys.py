"""API keys: who calls, told by the SHA-256 of what they send. Keys themselves are neither stored nor logged."""

import hashlib
import os
import secrets
from collections.abc import Mapping
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trimtab.engine.errors import TrimtabError

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class KeyMissing(TrimtabError):
    """A key that the settings point at is not to be had."""


class Key(BaseModel):
    """One key: its digest, or where the key itself is to be read. `trimtab key` makes one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Digest | None = Field(None, description="hex digest of the key")
    env: str | None = Field(None, description="environment variable that holds the key")
    file: Path | None = Field(None, description="file that holds the key, as secrets are mounted")
    policy: str | None = Field(None, description="policy of who calls with it; absent: default_policy")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(each is not None for each in (self.sha256, self.env, self.file)) != 1:
            raise ValueError("give exactly one of sha256, env and file")
        return self

    def digest(self) -> bytes:
        """The SHA-256 of the key; raises KeyMissing when it cannot be read or is empty."""
        if self.sha256 is not None:
            return bytes.fromhex(self.sha256)
        if self.env is not None:
            text, where = os.environ.get(self.env, ""), f"the environment variable {self.env}"
        else:
            assert self.file is not None
            where = f"the file {self.file}"
            try:
                text = self.file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise KeyMissing(f"cannot read a key from {where}: {error}") from None
        if not text.strip():
            raise KeyMissing(f"a key is to be read from {where}, which is empty")
        return digest(text.strip())


def digest(key: str) -> bytes:
    """SHA-256 of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def generate() -> str:
    """A new key of 256 random bits."""
    return f"trimtab-{secrets.token_urlsafe(32)}"


def bearer(authorization: str | None) -> str | None:
    """The key of an Authorization header; None for an absent header and for other schemes."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def owner(key: str, digests: Mapping[str, bytes]) -> str | None:
    """The name whose digest is the key's; every digest is compared, in constant time."""
    sent, found = digest(key), None
    for name, known in digests.items():
        if compare_digest(sent, known):
            found = name
    return found
