"""Norms and profiles through both Python clients, on the real server."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from steered import furnish

from trimtab.clients.client import ClientError
from trimtab.decoders.library import Library
from trimtab.engine.settings import EngineSettings
from trimtab.llm import LLM
from trimtab.server.app import create_app
from trimtab.server.serve import DrainingServer, bind, uvicorn_config
from trimtab.server.settings import Settings

KEYS = {name: {"sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("op", "anna", "bert")}
OPERATOR = {"api_key": "op"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with an empty store, an operator and two callers."""
    place = furnish(tmp_path_factory.mktemp("library"))
    engine = EngineSettings(model=str(place / "base"), device="cpu", threads=1, pool_tokens=1024)
    callers = {name: key for name, key in KEYS.items() if name != "op"}
    settings = Settings.model_validate({"server": {"port": 0}, "admin_key": KEYS["op"], "keys": callers})
    with closing(Library()) as library, LLM(settings=engine, library=library) as llm:
        listener = bind(settings.server)
        server = DrainingServer((app := create_app(llm, settings)).state.service, uvicorn_config(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


def test_norms(client: Any, url: str) -> None:
    def ask(method: str, *args: Any, **fields: Any) -> Any:
        return client.ask(url, method, *args, options=OPERATOR, **fields)

    for left in ask("norms"):
        ask("delete_norm", left["id"])
    norms: list[dict[str, Any]] = [
        {"id": "a:1", "text": "Be\u2028kind.", "tags": ["tone", "a&b"]},
        {"id": "b", "text": "Be brief.", "tenant": "anna"},
    ]
    made = ask("create_norm", norms[0])
    assert ask("norm", "a:1") == made
    with pytest.raises(ClientError) as refused:
        ask("create_norm", norms[0])
    assert (refused.value.status, refused.value.code) == (409, "exists")
    assert ask("import_norms", norms) == {"created": 1, "replaced": 0, "unchanged": 1}
    assert ask("export_norms") == norms
    assert [norm["id"] for norm in ask("norms", limit=1)] == ["a:1"]
    assert [norm["id"] for norm in ask("norms", after="a:1")] == ["b"]
    assert [norm["id"] for norm in ask("norms", tags=["a&b"])] == ["a:1"]
    assert [norm["id"] for norm in ask("norms", q="brief", tenant="anna")] == ["b"]
    changed = ask("change_norm", "a:1", {"text": "Be calm."}, version=made["version"])
    assert (changed["text"], changed["version"]) == ("Be calm.", made["version"] + 1)
    for method, given in (("change_norm", ["a:1", {"text": "x"}]), ("delete_norm", ["a:1"])):
        with pytest.raises(ClientError) as refused:
            ask(method, *given, version=made["version"])
        assert (refused.value.status, refused.value.code) == (412, "version_conflict")
    assert ask("delete_norm", "a:1", version=changed["version"]) is None
    assert [norm["id"] for norm in ask("norms")] == ["b"]
    for model in (None, "base"):
        with pytest.raises(ClientError, match="no guide is named 'finder'") as refused:
            ask("embed_norms", "finder", model=model)
        assert (refused.value.status, refused.value.param) == (400, "embedding")
    with pytest.raises(ClientError) as refused:
        client.ask(url, "norms", options={"api_key": "anna"})
    assert refused.value.status == 401


def test_profiles(client: Any, url: str) -> None:
    def ask(caller: str, method: str, *args: Any) -> Any:
        return client.ask(url, method, *args, options={"api_key": caller})

    stored = ask("anna", "store_profile", "user 1?", {"weights": {"brevity": 0.5}})
    assert stored["weights"] == {"brevity": 0.5}
    assert ask("anna", "profile", "user 1?") == stored
    assert ask("anna", "profiles") == [stored]
    assert ask("bert", "profiles") == []
    assert ask("anna", "erase_profile", "user 1?") is None
    with pytest.raises(ClientError) as refused:
        ask("anna", "profile", "user 1?")
    assert (refused.value.status, refused.value.code) == (404, "profile_not_found")
