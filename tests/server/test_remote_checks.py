"""What `trimtab doctor` says of the server that runs the base."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from far_toy import CAPABILITIES
from running import Running
from tiny import tiny_folder
from typer.testing import CliRunner

from trimtab.engine.remote.wire import Capabilities
from trimtab.engine.settings import EngineSettings
from trimtab.llm import LLM
from trimtab.server.cli import app
from trimtab.server.doctor import Check, examine
from trimtab.server.remote_checks import remote_checks
from trimtab.server.settings import ServerSettings, Settings

ALL = replace(CAPABILITIES, model="demo", context_length=2048, prompt_logprobs=5, scores=("score", "classify"))


def checks(can: Capabilities | None) -> list[Check]:
    remote = None if can is None else SimpleNamespace(capabilities=can)
    return list(remote_checks(cast(LLM, SimpleNamespace(models={"base": SimpleNamespace(remote=remote)}))))


def test_a_server_that_can_everything() -> None:
    (told,) = checks(ALL)
    assert told.line == (
        "ok       remote: trimtab serves demo, context of 2048 tokens; it takes token ids, returns token ids, writes "
        "several answers in a call, draws as a local base would, tells 20 log-probabilities of each token, and 5 of "
        "each token of a prompt, keeps prefixes of different salts apart, judges by score and classify"
    )
    assert checks(None) == []


@pytest.mark.parametrize(
    ("lack", "told"),
    [
        ({"token_ids": False}, "tokenised again"),
        ({"seeds": False}, "may not repeat"),
        ({"logprobs": -1}, "traces"),
        ({"logprobs": 0}, "nudging and wsd are a 400"),
        ({"prompt_logprobs": -1}, "nudging and wsd are a 400"),
        ({"salts": False}, "share stored prefixes"),
    ],
)
def test_what_a_server_lacks_is_told_with_what_to_do(lack: dict[str, Any], told: str) -> None:
    _, *lacks = checks(replace(ALL, **lack))
    assert any(told in each.finding and each.fix for each in lacks)


def test_the_doctor_looks_at_a_base_without_pages_here(tmp_path: Path) -> None:
    """Guides that are loaded here have pages, a remote base has none."""
    folder = str(tiny_folder(tmp_path / "tiny"))
    local = {"model": folder, "dtype": "float32"}
    with LLM(settings=EngineSettings.model_validate(local)) as base:
        server = Running(base, ServerSettings())
        try:
            remote = {**local, "remote": {"url": server.url}}
            alone = [*examine(Settings(engine=EngineSettings.model_validate(remote)))]
            guides = {"sibling": {"role": "lm", "model": folder}}
            beside = [*examine(Settings(engine=EngineSettings.model_validate({**remote, "guides": guides})))]
        finally:
            server.stop()
    assert [each.name for each in alone if each.name in ("model", "remote", "memory")] == ["model", "remote"]
    assert {"remote", "memory", "guide sibling"} <= {each.name for each in beside}


def test_the_command_line_names_a_remote_base() -> None:
    shown = CliRunner().invoke(app, ["serve", "--remote", "http://gpu:8000/v1", "--print-config"])
    assert "url: http://gpu:8000" in shown.output
    wrong = CliRunner().invoke(app, ["doctor", "--remote", "gpu:8000"])
    assert wrong.exit_code == 1
    assert "write http://host:port" in wrong.output
