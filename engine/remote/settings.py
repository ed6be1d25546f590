"""How a base model behind another server is reached: one frozen tree within the engine's settings."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Kind = Literal["auto", "trimtab", "vllm", "sglang", "llama.cpp"]


class ConnectionSettings(BaseModel):
    """One server of the OpenAI API, and how patient a client of it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(description="address of the server, http://host:port; a path before /v1 may follow")
    served: str | None = Field(None, description="model id to ask for there; absent: the first that it lists")
    api_key_env: str | None = Field(None, description="environment variable that holds the key it asks for")
    connections: int = Field(64, ge=1, description="calls that are under way at the same time; more wait here")
    connect_timeout: float = Field(5.0, gt=0.0, description="seconds to reach it")
    read_timeout: float = Field(120.0, gt=0.0, description="seconds of silence after which a call has failed")
    retries: int = Field(4, ge=0, description="further attempts of a call that was not taken: 429, 503, no connection")
    backoff: float = Field(0.25, gt=0.0, description="seconds before the first of them, doubled each time, with jitter")
    longest_backoff: float = Field(8.0, gt=0.0, description="seconds; also the longest Retry-After that is waited for")
    hedge_after: float | None = Field(
        None,
        gt=0.0,
        description="seconds after which a call is sent once more, and the first answer wins; absent: never",
    )

    @field_validator("url")
    @classmethod
    def _absolute(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no address: write http://host:port")
        return url.rstrip("/").removesuffix("/v1")


class RemoteSettings(ConnectionSettings):
    """The base model behind another server; `engine.model` is where its tokenizer and chat template are read."""

    kind: Kind = Field("auto", description="what answers there; auto: as it introduces itself")
    recheck: float = Field(30.0, gt=0.0, description="seconds between two looks whether a lost server is back")
    chunk: int = Field(
        16, ge=1, le=256, description="tokens that the base writes ahead in its turns under nudging and wsd"
    )
    top_logprobs: int = Field(20, ge=1, le=20, description="best tokens asked for at each position of those turns")
