"""How both clients reach a server."""

import os

import httpx2

URL = "http://127.0.0.1:8000"
"""where `trimtab serve` listens unless it is told otherwise"""
TIMEOUT = 600.0
"""seconds of silence; an answer that is not streamed is silent until it is complete"""
CONNECT_TIMEOUT = 10.0
"""seconds until a server must have taken a connection"""


def headers(api_key: str | None) -> dict[str, str]:
    """The caller's key, given or from the environment, as the server wants it."""
    key = os.environ.get("TRIMTAB_API_KEY") if api_key is None else api_key
    return {"authorization": f"Bearer {key}"} if key else {}


def limits(timeout: float) -> httpx2.Timeout:
    """The longest silence, and a shorter wait for the connection itself."""
    return httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT))
