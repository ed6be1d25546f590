"""schemathesis against a real server: every operation of /openapi.json, all checks.

`FUZZ_CASES=2000 pytest tests/server/test_fuzz.py` runs as many cases as that; the suite runs few.
"""

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema
from schemathesis.specs.openapi.checks import RejectedPositiveData

from trimtab.decoders.library import Library
from trimtab.engine.settings import EngineSettings
from trimtab.llm import LLM
from trimtab.server.settings import Settings

schemathesis.serializer.alias("application/jsonl", "text/plain")

CASES = int(os.environ.get("FUZZ_CASES", "150"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
KEY, ADMIN = "fuzz-key", "fuzz-admin-key"

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def url(model_folder: Path, start_shared: Callable[..., Any]) -> Iterator[str]:
    """A server with keys, which answers briefly, over a model of its own: its guides come and go."""
    engine = EngineSettings(model=str(model_folder), dtype="float32", device="cpu", threads=1, pool_tokens=4096)
    settings = {
        "server": {"limits": {"max_tokens": 4, "max_n": 4}},
        "keys": {"fuzz": {"sha256": sha256(KEY.encode()).hexdigest()}},
        "admin_key": {"sha256": sha256(ADMIN.encode()).hexdigest()},
    }
    with closing(Library()) as library, LLM(settings=engine, library=library) as llm:
        yield str(start_shared(llm, Settings.model_validate(settings)).url)


def known_names(document: dict[str, Any]) -> dict[str, Any]:
    """The document with what this server has where any name or token id would do: most requests come to something.

    No model is loaded: a folder or hub id that somebody made up is looked for on the disk and in the network.
    """
    document = copy.deepcopy(document)
    schemas = document["components"]["schemas"]
    for name in ("ChatRequest", "CompletionRequest"):
        schemas[name]["properties"]["model"] = {"const": "tiny"}
    for name in ("TokenizeRequest", "DetokenizeRequest"):
        schemas[name]["properties"]["model"] = {"enum": ["tiny", None]}
    for name in ("ScoreRequest", "ClassifyRequest"):
        schemas[name]["properties"]["model"] = {"enum": REWARDS}
    schemas["LoadModel"]["properties"]["engine"] = {
        "type": "object",
        "properties": {"model": {"const": "/none"}},
        "required": ["model"],
        "additionalProperties": False,
    }
    schemas["LoadGuide"]["properties"]["config"] = {
        "type": "object",
        "properties": {"role": {"const": "program"}, "kind": {"const": "json"}},
        "required": ["role", "kind"],
        "additionalProperties": False,
    }
    unload = document["paths"]["/admin/models/{model}"]["delete"]["parameters"]
    unload[0]["schema"] = {"const": "missing"}  # the one model is to stay
    schemas["FunctionCall"]["properties"]["arguments"] = {"enum": ["", "{}", '{"a": [1]}']}
    lines = document["paths"]["/admin/norms/import"]["post"]["requestBody"]["content"]["application/jsonl"]
    lines["schema"] = {"enum": ['{"id": "a", "text": "Be kind."}', '{"id": "a", "text": "Be brief."}\n\n']}
    schemas["NewProfile"]["properties"]["weights"]["anyOf"][0]["propertyNames"] = {"enum": ["brevity", "warmth"]}
    token = {"type": "integer", "minimum": 0, "maximum": 260}
    schemas["DetokenizeRequest"]["properties"]["tokens"]["items"] = token
    schemas["Expression"]["anyOf"][0]["enum"] = REWARDS
    for schema in schemas.values():
        reward = schema.get("properties", {}).get("reward", {})
        if reward.get("type") == "string":
            reward["enum"] = REWARDS
    for name in ("ChatRequest", "CompletionRequest"):
        fields = schemas[name]["properties"]
        for field in ("logit_bias", "stop_token_ids", "prompt"):
            for branch in fields.get(field, {}).get("anyOf", ()):
                if field == "logit_bias" and branch.get("type") == "object":
                    branch["propertyNames"] = {"enum": [str(each) for each in range(0, 261, 20)]}
                for part in (branch, branch.get("items", {})):
                    if part.get("items", {}).get("type") == "integer":
                        part["items"] = token
    return document


REWARDS = ["brevity", "lexicon", "length", "json"]


SPANNING = (
    "decoding",  # combinations of a strategy, parts and rules; guides that are not configured
    "n",  # times the number of prompts
    "stream_options",  # needs stream
    "top_logprobs",  # needs logprobs
    "continue_final_message",  # excludes add_generation_prompt
    "chat_template_kwargs",  # may not name arguments of the template's own function
    "messages",  # what the chat template refuses
    "prompt",  # ids beyond the vocabulary
    "tokens",
    "logit_bias",
    "stop_token_ids",
    "min_tokens",  # at most max_tokens
    "text_1",
    "text_2",
    "pairs",
    "conversations",
    "input",
    "tool_choice",  # needs tools that have the function
    "tools",  # each function once
    "response_format",  # a schema with its type alone, and one that can be compiled
    "engine",
    "config",
    "infer",  # a guide that is loaded
    "embedding",
    "valid_until",  # after valid_from
    "id",  # as the path has it
    "text",  # no control characters
    "topic",
    "tags",
    "tenant",
)
"""fields with a rule that JSON Schema cannot tell, because it spans several fields or what is loaded"""


@pytest.fixture
def judged() -> Iterator[None]:
    """Requests that fit their schema may be refused for SPANNING fields alone."""

    @schemathesis.hook
    def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
        if not isinstance(failure, RejectedPositiveData) or response.status_code not in (400, 412):
            return True
        if response.status_code == 412:  # of an if-match that somebody made up
            return False
        error = response.json()["error"]
        return (error["param"] or "").replace("[", ".").split(".")[0] not in SPANNING

    yield
    schemathesis.hooks.unregister_all()


def brief(document: dict[str, Any]) -> dict[str, Any]:
    """The document with few decoding objects: every combination of boundaries of all of them would take hours."""
    schemas = document["components"]["schemas"]
    for name, kept in {
        "Decoding": ["SampleDecoding", "BestOfNDecoding", "MixtureDecoding"],
        "SteeringPart": ["CandidatesPart"],
        "Selection": ["SoftRule"],
    }.items():
        (union,) = schemas[name].keys() & {"oneOf", "anyOf"}
        schemas[name][union] = [each for each in schemas[name][union] if each.get("$ref", "").split("/")[-1] in kept]
    schemas["Expression"] = {"enum": REWARDS}
    return document


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize("phase", ["fuzzing", "coverage"] if CASES > 1000 else ["fuzzing"])
def test_the_server_does_what_its_document_says(url: str, phase: str) -> None:
    document = known_names(httpx2.get(url + "/openapi.json").json())
    if phase == "coverage":
        document = brief(document)
    operations = sum(len(path) for path in document["paths"].values())
    config = SchemathesisConfig.from_dict(
        {
            "base-url": url,
            "seed": SEED,
            "auth": {"openapi": {"key": {"bearer": KEY}, "admin": {"bearer": ADMIN}}},
            "generation": {
                "deterministic": True,
                "max-examples": max(1, CASES // operations),
                "database": "none",
            },
            "phases": {each: {"enabled": each == phase} for each in ("examples", "coverage", "fuzzing", "stateful")},
            "operations": [  # what does not fit is not sent there: it would load the default model
                {"include-path": "/admin/models", "generation": {"mode": "positive"}},
                {"include-path": "/admin/norms/import", "generation": {"mode": "positive"}},
            ],
            "continue-on-failure": True,
            "output": {"sanitization": {"enabled": False}},
            "request-timeout": 30,
        }
    )
    sent: Counter[int] = Counter()
    problems: list[str] = []
    for event in from_schema(schemathesis.openapi.from_dict(document, config=config)).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            problems.append(str(event))
        if isinstance(event, events.ScenarioFinished):
            for each in event.recorder.interactions.values():
                sent[each.response.status_code if each.response else 0] += 1
            problems += list(told(event))
    print(f"{sum(sent.values())} requests: {dict(sorted(sent.items()))}")
    assert not problems, f"{len(problems)} problems\n\n" + "\n\n".join(problems[:20])
    assert sum(sent.values()) >= CASES // 2


def told(event: events.ScenarioFinished) -> Iterator[str]:
    """The failures of one scenario with the requests that made them."""
    for case, checks in event.recorder.checks.items():
        response = event.recorder.find_response(case_id=case)
        answer = "no answer" if response is None else f"{response.status_code} {response.text[:500]}"
        for check in checks:
            if check.status == Status.FAILURE and check.failure_info is not None:
                failure = check.failure_info
                yield f"{event.label} {check.name}: {failure.failure}\n{failure.code_sample[:1000]}\n{answer}"
