"""Strategy `auto`: the choice on a made-up profile, and over HTTP under presets, policies, load and reloads."""

import hashlib
import itertools
import json
import logging
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from typer.testing import CliRunner
from wire import metrics

from trimtab.clients.client import TrimtabClient
from trimtab.clients.decoding import Auto, Budget
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine import budget
from trimtab.engine.errors import InvalidRequest
from trimtab.llm import LLM
from trimtab.server.cli import app
from trimtab.server.doctor import examine
from trimtab.server.frontier import Frontier, InvalidProfile
from trimtab.server.settings import InvalidSettings, Settings, Source

Start = Callable[..., Any]
CHAT = "/v1/chat/completions"
MEASURED = 48
"""tokens"""


def setting(name: str, decoding: dict[str, Any], reward: float, spent: float, *p95: float) -> dict[str, Any]:
    """One setting, timed at one, four and sixteen requests at a time."""
    levels = zip((1, 4, 16), p95, strict=False)
    return {
        "name": name,
        "decoding": decoding,
        "reward": {"mean": reward, "low": reward - 0.1, "high": reward + 0.1},
        "spent": spent,
        "latency": [
            {"concurrency": level, "answers": 16 + level, "p50_ms": ms / 2, "p95_ms": ms} for level, ms in levels
        ],
    }


def best_of(n: int) -> dict[str, Any]:
    return {"strategy": "best_of_n", "n": n, "reward": "brevity"}


SETTINGS = [
    setting("base", {}, 0.1, 60, 100, 150, 400),
    setting("steered", {"strategy": "candidates", "top_k": 5}, 0.3, 70, 200, 320, 900),
    setting("slow", {"strategy": "candidates", "top_k": 9}, 0.3, 70, 250, 400, 1100),  # no better than `steered`
    setting("best_of_2", best_of(2), 0.5, 120, 300, 500, 1500),
    setting("best_of_4", best_of(4), 0.8, 240, 600, 1100, 4000),
]


def profile(**changes: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "format": 1,
        "model": "tiny",
        "dtype": "float32",
        "device": "cpu",
        "hardware": {"cores": 2},
        "version": "0",
        "commit": None,
        "reward": "brevity",
        "gold": None,
        "max_tokens": MEASURED,
        "temperature": 0.7,
        "prompts": {"name": "made-up", "count": 40},
        "settings": SETTINGS,
    }
    return told | changes


def read(path: Path, **changes: Any) -> Frontier:
    path.write_text(json.dumps(profile(**changes)), encoding="utf-8")
    return Frontier.read(path)


@pytest.fixture
def frontier(tmp_path: Path) -> Frontier:
    return read(tmp_path / "profile.json")


CASES: list[tuple[dict[str, Any], dict[str, Any], str, bool, float]] = [
    # budget, load and length and who is allowed, the setting, whether it fits, its latency
    ({"deadline_ms": 10_000}, {}, "best_of_4", True, 600),
    ({"deadline_ms": 600}, {}, "best_of_4", True, 600),
    ({"deadline_ms": 599}, {}, "best_of_2", True, 300),
    ({"deadline_ms": 250}, {}, "steered", True, 200),  # as good as `slow`, and faster
    ({"deadline_ms": 99}, {}, "base", False, 100),
    ({"reward_at_least": 0.3}, {}, "steered", True, 200),
    ({"reward_at_least": 0.31}, {}, "best_of_2", True, 300),
    ({"reward_at_least": 0.8}, {}, "best_of_4", True, 600),
    ({"reward_at_least": -5.0}, {}, "base", True, 100),
    ({"reward_at_least": 0.2, "deadline_ms": 10_000}, {}, "steered", True, 200),
    ({"reward_at_least": 0.6, "deadline_ms": 400}, {}, "best_of_2", False, 300),  # what is in time comes before
    ({"reward_at_least": 0.6, "deadline_ms": 50}, {}, "base", False, 100),
    ({"max_model_tokens": 240}, {}, "best_of_4", True, 600),
    ({"max_model_tokens": 239}, {}, "best_of_2", True, 300),
    ({"max_model_tokens": 1_500_000, "deadline_ms": 2_500_000}, {}, "best_of_4", True, 600),
    ({"max_model_tokens": 70}, {}, "steered", True, 200),
    ({"max_model_tokens": 9}, {}, "base", False, 100),
    ({"max_model_tokens": 100, "reward_at_least": 0.2}, {}, "steered", True, 200),
    ({"max_model_tokens": 100, "deadline_ms": 150}, {}, "base", True, 100),
    ({"deadline_ms": 600}, {"load": 2}, "best_of_2", True, 500),
    ({"deadline_ms": 600}, {"load": 4}, "best_of_2", True, 500),
    ({"deadline_ms": 600}, {"load": 5}, "base", True, 400),
    ({"deadline_ms": 600}, {"load": 24}, "base", True, 600),
    ({"deadline_ms": 600}, {"load": 25}, "base", False, 625),
    ({"reward_at_least": 0.5}, {"load": 32}, "best_of_2", True, 3000),
    ({"deadline_ms": 600}, {"max_tokens": 96}, "best_of_2", True, 600),
    ({"deadline_ms": 300}, {"max_tokens": 24}, "best_of_4", True, 300),
    ({"max_model_tokens": 240}, {"max_tokens": 96}, "best_of_2", True, 600),
    ({"deadline_ms": 10_000}, {"among": {"base", "slow"}}, "slow", True, 250),
    ({"deadline_ms": 10}, {"among": {"best_of_2", "slow"}}, "slow", False, 250),
]


@pytest.mark.parametrize(("given", "how", "name", "fits", "latency"), CASES)
def test_the_choice(
    frontier: Frontier, given: dict[str, Any], how: dict[str, Any], name: str, fits: bool, latency: float
) -> None:
    choice = frontier.choose(budget.Budget(**given), **{"load": 1, "max_tokens": MEASURED, **how})
    assert (choice.setting.name, choice.fits, choice.estimate.latency_ms) == (name, fits, latency)
    assert name in choice.reason
    assert f"{latency:g} ms" in choice.reason
    for value in given.values():
        assert (f"{value:g}" if isinstance(value, float) else str(value)) in choice.reason or not fits
    answers = {level.concurrency: level.answers for level in choice.setting.latency}
    assert f"by {answers[next((each for each in answers if each >= choice.load), 16)]} answers" in choice.reason


def test_nothing_measured_is_both_faster_and_better_than_what_is_chosen(tmp_path: Path) -> None:
    draw = random.Random(1)
    for case in range(200):
        made = [
            setting(f"s{i}", {}, draw.randrange(4) / 4, draw.randrange(1, 5), draw.randrange(1, 5) * 100)
            for i in range(draw.randrange(1, 9))
        ]
        found = read(tmp_path / "profile.json", settings=made)
        given = {"deadline_ms": draw.randrange(50, 500)} if case % 2 else {"reward_at_least": draw.randrange(4) / 4}
        try:
            chosen = found.choose(budget.Budget(**given), load=1, max_tokens=MEASURED)
        except InvalidRequest:
            assert all(each.reward.mean < given["reward_at_least"] for each in found.settings)
            continue
        mine = (chosen.estimate.latency_ms, -chosen.estimate.reward)
        others = [(each.latency_ms(1), -each.reward.mean) for each in found.settings]
        assert not [each for each in others if each != mine and each[0] <= mine[0] and each[1] <= mine[1]]
        if chosen.fits and "deadline_ms" in given:
            assert -mine[1] == max(-reward for ms, reward in others if ms <= given["deadline_ms"])
        if "reward_at_least" in given:
            assert mine[0] == min(ms for ms, reward in others if -reward >= given["reward_at_least"])


def test_a_reward_that_nothing_reaches_names_the_best_there_is(frontier: Frontier) -> None:
    with pytest.raises(InvalidRequest, match=r"brevity of 0\.9.*best_of_4 with 0\.8"):
        frontier.choose(budget.Budget(reward_at_least=0.9), load=1, max_tokens=MEASURED)
    with pytest.raises(InvalidRequest, match=r"9 tokens: none spends so little, and base, with 0\.1, the least: 60"):
        frontier.choose(budget.Budget(reward_at_least=0.9, max_model_tokens=9), load=1, max_tokens=MEASURED)
    with pytest.raises(InvalidRequest, match=r"0\.6 within 130 tokens: the best is best_of_2 with 0\.5"):
        frontier.choose(
            budget.Budget(reward_at_least=0.6, max_model_tokens=130, deadline_ms=1), load=1, max_tokens=MEASURED
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read the profile"),
        ("{", "is not JSON"),
        ("[]", "of format None, not 1"),
        (json.dumps(profile(format=2)), "of format 2, not 1: make it with `trimtab bench --profile`"),
        (json.dumps(profile(settigns=[])), "settigns: unknown key"),
        (json.dumps(profile(settings=[])), "settings"),
        (json.dumps(profile(settings=[SETTINGS[0], SETTINGS[0]])), "'base' stands twice"),
        (json.dumps(profile(settings=[{**SETTINGS[0], "latency": []}])), "settings.0.latency"),
        (json.dumps(profile(settings=[{**SETTINGS[0], "latency": SETTINGS[0]["latency"][:1] * 2}])), "twice"),
        (json.dumps(profile(settings=[{**SETTINGS[0], "spent": -1}])), "settings.0.spent"),
        (json.dumps(profile(settings=[{**SETTINGS[0], "spent": float("inf")}])), "settings.0.spent"),
        (json.dumps(profile(settings=[{**SETTINGS[0], "delivered": 40.0}])), "settings.0.delivered: unknown key"),
        (json.dumps(profile(temperature=2.5)), "temperature"),
        (json.dumps(profile(temperature=float("nan"))), "temperature"),
        (json.dumps(profile(max_tokens=2**31)), "max_tokens"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidProfile) as refused:
        Frontier.read(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


POLICIES: dict[str, Any] = {
    "plain": {"strategies": []},
    "brief": {"sampling": {"temperature": [0.0, 0.5], "max_tokens": [1, 24]}},
    "traceless": {"forbidden": ["trace"]},
    "judged": {"floor": {"reward": "length", "search": {"strategy": "best_of_n", "n": 2}}, "strategies": ["best_of_n"]},
    "steered": {"floor": {"steer": [{"method": "candidates", "top_k": 3}], "budget": {"deadline_ms": 350}}},
    "nobody": {"guides": [], "strategies": []},
    "narrow": {"limits": {"rows": 2}},
    "single": {"limits": {"rows": 1}},
    "rationed": {"limits": {"requests_per_minute": 1}},
}
PRESETS: dict[str, Any] = {
    "quick": {"decoding": {"strategy": "auto", "budget": {"deadline_ms": 10_000}}, "sampling": {"max_tokens": 24}},
}


def settings_of(path: Path, **values: Any) -> Settings:
    return Settings.model_validate({"auto": str(path), **values})


@pytest.fixture(scope="module")
def served(llm: LLM, start_shared: Start, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("auto") / "profile.json"
    read(path)
    keys = {name: {"sha256": hashlib.sha256(name.encode()).hexdigest(), "policy": name} for name in POLICIES}
    keys["free"] = {"sha256": hashlib.sha256(b"free").hexdigest()}
    admin = {"sha256": hashlib.sha256(b"operator").hexdigest()}
    return start_shared(llm, settings_of(path, presets=PRESETS, policies=POLICIES, keys=keys, admin_key=admin))


Post = Callable[..., httpx2.Response]


@pytest.fixture(scope="module")
def post(served: Any) -> Iterator[Post]:
    with httpx2.Client(base_url=served.url, timeout=60) as client:

        def post(given: dict[str, Any] | None, caller: str = "free", **said: Any) -> httpx2.Response:
            body: dict[str, Any] = {
                "model": "tiny",
                "messages": [{"role": "user", "content": "Hi"}],
                "max_tokens": 6,
                "seed": 1,
            }
            if given is not None:
                body["decoding"] = {"strategy": "auto", **given}
            headers = {"authorization": f"Bearer {caller}"}
            sent = {name: value for name, value in {**body, **said}.items() if value is not None}
            return client.post(CHAT, json=sent, headers=headers)

        yield post


def decoding(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()["decoding"]
    return told


def refused(answer: httpx2.Response, param: str, status: int = 400) -> str:
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    return str(error["message"])


def test_a_deadline_is_met_by_the_best_setting_and_stays_a_budget(post: Post) -> None:
    told = decoding(post({"budget": {"deadline_ms": 500}}, max_tokens=MEASURED))
    auto = told["auto"]
    assert told["spec"] == DecodingSpec.parse({**best_of(2), "budget": {"deadline_ms": 500}}).dump()
    assert (auto["setting"], auto["fits"], auto["reward"], auto["latency_ms"]) == ("best_of_2", True, 0.5, 300)
    assert auto["reason"].startswith("best_of_2 has the highest brevity of 4 of 5 settings that meet 500 ms; mean")
    assert (auto["concurrency"], auto["answers"], auto["temperature"]) == (1, 17, 0.7)
    assert auto["profile"]["prompts"] == {"name": "made-up", "count": 40}
    assert len(told["candidates"]) == 2


def test_answers_are_those_of_the_setting_named_by_hand(post: Post) -> None:
    auto = post({"budget": {"max_model_tokens": 10_000}})
    budget = {"max_model_tokens": 10_000}
    hand = post(None, decoding={**best_of(4), "budget": budget}, temperature=0.7)  # as the profile was measured
    assert auto.json()["choices"] == hand.json()["choices"]
    assert auto.json()["choices"] != post(None, decoding={**best_of(4), "budget": budget}).json()["choices"]
    hot = post({"budget": budget}, temperature=1.5)
    assert hot.json()["choices"] == post(None, decoding=best_of(4), temperature=1.5).json()["choices"]


def test_a_deadline_that_nothing_meets_gets_the_fastest_and_says_so(post: Post) -> None:
    told = decoding(post({"budget": {"deadline_ms": 90}}, max_tokens=MEASURED))
    assert (told["auto"]["setting"], told["auto"]["fits"]) == ("base", False)
    assert "no setting answers within 90 ms" in told["auto"]["reason"]
    assert told["spec"]["strategy"] == "sample"


def test_a_reward_to_be_reached_is_a_mean_and_ends_no_search(post: Post) -> None:
    searched = decoding(post({"budget": {"reward_at_least": 0.4, "max_rows": 1}}))
    assert searched["auto"]["setting"] == "best_of_2"
    assert searched["spec"]["budget"] == {"max_rows": 1}
    assert len(searched["candidates"]) == 2
    steered = decoding(post({"budget": {"reward_at_least": 0.2}}))
    assert steered["auto"]["setting"] == "steered"
    assert "budget" not in steered["spec"]


def test_a_reward_out_of_reach_is_a_400_that_names_the_best(post: Post) -> None:
    told = refused(post({"budget": {"reward_at_least": 0.9}}), "decoding.budget.reward_at_least")
    assert "best_of_4 with 0.8" in told


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "decoding.budget"),
        ({"budget": {}}, "decoding.budget"),
        ({"budget": {"max_rows": 4}}, "decoding.budget"),
        ({"budget": {"deadline": 4}}, "decoding.budget.deadline"),
        ({"budget": {"deadline_ms": 0}}, "decoding.budget.deadline_ms"),
        ({"budget": {"max_model_tokens": 10**400}}, "decoding.budget.max_model_tokens"),
        ({"budget": 4}, "decoding.budget"),
        ({"budget": {"deadline_ms": 4}, "n": 2}, "decoding.n"),
        ({"budget": {"deadline_ms": 4}, "steer": []}, "decoding.steer"),
        ({"budget": {"deadline_ms": 4}, "prompt": []}, "decoding.prompt"),
        ({"budget": {"deadline_ms": 4}, "select": "argmax"}, "decoding.select"),
        ({"budget": {"deadline_ms": 4}, "preference": {"profile": "x"}}, "decoding.preference"),
        ({"budget": {"deadline_ms": 4}, "trace": "words"}, "decoding.trace"),
    ],
)
def test_what_would_not_be_what_was_measured_is_refused(post: Post, given: dict[str, Any], param: str) -> None:
    refused(post(given), param)


def test_length_counts_where_somebody_has_set_it(post: Post) -> None:
    def latency(**said: Any) -> float:
        return float(decoding(post({"budget": {"max_model_tokens": 10_000}}, **said))["auto"]["latency_ms"])

    assert latency(max_tokens=24) == 300
    assert latency(max_tokens=96, stop=[" "]) == 1200
    assert latency(max_tokens=None, stop=["e", "a", "t", " "]) == 600
    assert latency(max_tokens=None, caller="brief") == 300


def test_requests_at_the_same_time_count(served: Any, post: Post, wait_until: Callable[..., None]) -> None:
    body = {"model": "tiny", "prompt": "Hi", "max_tokens": 400, "ignore_eos": True, "stream": True}
    headers = {"authorization": "Bearer free"}
    with httpx2.stream("POST", served.url + "/v1/completions", json=body, headers=headers, timeout=60) as long:
        lines = long.iter_lines()
        next(lines)
        loaded = decoding(post({"budget": {"deadline_ms": 600}}, max_tokens=MEASURED))
    assert (loaded["auto"]["setting"], loaded["auto"]["concurrency"]) == ("best_of_2", 2)
    wait_until(lambda: served.service.bridge.open == 0)
    assert decoding(post({"budget": {"deadline_ms": 600}}, max_tokens=MEASURED))["auto"]["setting"] == "best_of_4"


def test_prompts_of_one_request_count_and_share_the_setting(served: Any) -> None:
    body = {
        "model": "tiny",
        "prompt": ["a", "b", "c"],
        "max_tokens": 2,
        "decoding": {"strategy": "auto", "budget": {"deadline_ms": 9}},
    }
    answer = httpx2.post(served.url + "/v1/completions", json=body, headers={"authorization": "Bearer free"})
    told = answer.json()["decoding"]
    assert [each["auto"]["setting"] for each in told] == ["base"] * 3
    assert [each["auto"]["concurrency"] for each in told] == [3] * 3


def test_a_setting_with_too_few_answers_is_passed_over(post: Post) -> None:
    assert decoding(post({"budget": {"deadline_ms": 10_000}}, n=2))["auto"]["setting"] == "best_of_4"
    assert decoding(post({"budget": {"deadline_ms": 350}}, n=2, max_tokens=MEASURED))["auto"]["setting"] == "best_of_2"
    assert decoding(post({"budget": {"deadline_ms": 10_000}}, n=5))["auto"]["setting"] == "steered"


def test_streams_tell_the_choice_at_the_end(post: Post) -> None:
    text = post({"budget": {"deadline_ms": 10_000}}, stream=True).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    (told,) = [event["decoding"] for event in events if event.get("decoding")]
    assert told["auto"]["setting"] == "best_of_4"
    assert told["spec"]["strategy"] == "best_of_n"


def test_presets_may_leave_the_choice_to_the_profile(post: Post) -> None:
    told = decoding(post(None, model="tiny:quick", max_tokens=None))
    assert (told["preset"], told["auto"]["setting"], told["auto"]["latency_ms"]) == ("quick", "best_of_4", 300)
    own = post(None, model="tiny:quick", decoding={"budget": {"deadline_ms": 160}}, max_tokens=MEASURED)
    assert decoding(own)["auto"]["setting"] == "base"
    assert "auto" not in decoding(post(None, model="tiny:quick", decoding={"strategy": "sample"}))
    refused(post(None, model="tiny:quick", decoding={"n": 3}), "decoding.n")


def test_a_policy_bounds_the_choice_as_it_would_a_request_by_hand(post: Post) -> None:
    told = decoding(post({"budget": {"deadline_ms": 10_000}}, "plain"))
    assert (told["auto"]["setting"], told["policy"]["name"]) == ("base", "plain")
    message = refused(post({"budget": {"reward_at_least": 0.5}}, "plain"), "decoding.budget.reward_at_least")
    assert "the best is base" in message
    preset = decoding(post(None, "plain", model="tiny:quick"))  # the operator's own word
    assert preset["auto"]["setting"] == "best_of_4"
    merged = decoding(post(None, "plain", model="tiny:quick", decoding={"budget": {"deadline_ms": 10_000}}))
    own = decoding(post(None, "plain", model="tiny:quick", decoding={"strategy": "sample"}))  # by another strategy
    assert "auto" not in own
    refused(post(None, "plain", model="tiny:quick", decoding=best_of(2)), "decoding.strategy", 403)
    assert merged["auto"]["setting"] == "base"


def test_a_policy_holds_what_the_profile_brings_within_its_ranges(post: Post) -> None:
    told = decoding(post({"budget": {"deadline_ms": 10_000}}, "brief", max_tokens=None))
    assert told["policy"]["applied"] == ["temperature is 0.5", "max_tokens is 24"]
    assert told["auto"]["temperature"] == 0.5
    wanted = {"decoding": best_of(4), "temperature": 0.5, "max_tokens": 24}
    by_hand, auto = post(None, **wanted), post({"budget": {"deadline_ms": 10_000}}, "brief", max_tokens=None)
    assert auto.json()["choices"] == by_hand.json()["choices"]
    refused(post({"budget": {"deadline_ms": 10_000}}, "brief", temperature=0.9), "temperature", 403)


def test_a_policy_that_forbids_a_field_forbids_it_beside_auto(post: Post) -> None:
    given = {"budget": {"deadline_ms": 10_000}, "trace": "tokens"}
    assert "trace may not be set" in refused(post(given, "traceless"), "decoding.trace", 403)
    assert decoding(post(given))["trace"]


def test_a_floor_holds_under_the_choice(post: Post) -> None:
    told = decoding(post({"budget": {"reward_at_least": 0.4}}, "judged"))
    assert told["auto"]["setting"] == "best_of_2"
    assert "budget" not in told["spec"]
    assert any("a reward counts in the selection" in each for each in told["policy"]["applied"])
    steered = decoding(post({"budget": {"deadline_ms": 10_000}}, "steered", max_tokens=MEASURED))
    assert steered["auto"]["setting"] == "best_of_2"  # in the floor's 350 ms; those that steer are passed over
    assert "deadline_ms is 350" in steered["policy"]["applied"]
    assert "350 ms" in steered["auto"]["reason"]


def test_where_no_setting_is_allowed_the_refusal_says_why(llm: LLM, start: Start, tmp_path: Path, post: Post) -> None:
    assert decoding(post({"budget": {"deadline_ms": 9}}, "nobody"))["auto"]["setting"] == "base"
    read(tmp_path / "profile.json", settings=SETTINGS[1:])
    strict = settings_of(tmp_path / "profile.json", policies={"p": {"strategies": []}}, default_policy="p")
    running = start(llm, strict)
    body = {"model": "tiny", "prompt": "a", "decoding": {"strategy": "auto", "budget": {"deadline_ms": 900}}}
    answer = httpx2.post(running.url + "/v1/completions", json=body)
    assert "no setting" in refused(answer, "decoding.strategy", 403)
    assert answer.json()["error"]["code"] == "policy_violation"


def test_choices_are_counted_by_setting(served: Any, post: Post) -> None:
    name = 'trimtab:auto_choices_total{setting="steered"}'
    before = metrics(served.url).get(name, 0)
    decoding(post({"budget": {"reward_at_least": 0.2}}))
    refused(post({"budget": {"reward_at_least": 9.0}}), "decoding.budget.reward_at_least")
    assert metrics(served.url)[name] == before + 1


def test_it_is_listed_with_its_schema(served: Any, http: httpx2.Client) -> None:
    told = httpx2.get(served.url + "/v1/strategies", headers={"authorization": "Bearer free"}).json()["data"][-1]
    assert (told["name"], told["kind"], told["available"]) == ("auto", "auto", True)
    assert set(told["schema"]["properties"]) == {"budget", "trace"}
    assert http.get("/v1/strategies").json()["data"][-1]["available"] is False


def test_the_typed_client_asks_for_it(served: Any) -> None:
    with TrimtabClient(served.url, api_key="free") as client:
        answer = client.chat(
            "tiny", [{"role": "user", "content": "Hi"}], max_tokens=2, decoding=Auto(budget=Budget(deadline_ms=10_000))
        )
    assert answer.decoding.raw["auto"]["setting"] == "best_of_4"


def test_without_a_profile_the_refusal_says_how_to_make_one(http: httpx2.Client) -> None:
    body = {"model": "tiny", "prompt": "a", "decoding": {"strategy": "auto", "budget": {"deadline_ms": 800}}}
    told = refused(http.post("/v1/completions", json=body), "decoding.strategy")
    assert "trimtab bench --profile" in told
    assert "trimtab serve --auto" in told


@pytest.mark.parametrize("given", [{"strategy": "auto"}, {"steer": [{"method": "auto"}]}])
def test_offline_it_is_said_to_be_the_servers(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="'auto' is the server's"):
        DecodingSpec.parse(given)


def test_another_model_beside_the_measured_one_is_refused(llm: LLM, fake: Any, start: Start, tmp_path: Path) -> None:
    read(tmp_path / "profile.json")
    running = start(llm, settings_of(tmp_path / "profile.json"))
    (tmp_path / "profile.json").unlink()  # what was read holds until a reload
    running.service.add(fake)
    body = {"model": "fake", "prompt": "a", "decoding": {"strategy": "auto", "budget": {"deadline_ms": 800}}}
    told = refused(httpx2.post(running.url + "/v1/completions", json=body), "decoding.strategy")
    assert "measured on 'tiny' and says nothing of 'fake'" in told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "other"}, "measured on the model 'other' and served is tiny"),
        ({"dtype": "bfloat16"}, "measured in bfloat16 and the model runs in float32"),
        ({"settings": [setting("arm", {"strategy": "genarm", "arm": "nobody"}, 1, 1, 1)]}, "setting 'arm'.*nobody"),
        ({"format": 7}, "of format 7"),
    ],
)
def test_a_profile_that_does_not_fit_is_told_at_the_start(
    llm: LLM, start: Start, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile(**changes)), encoding="utf-8")
    with pytest.raises(InvalidSettings, match=words) as refusal:
        start(llm, settings_of(path))
    assert str(refusal.value).startswith("setting auto: ")


@pytest.mark.parametrize(
    ("with_profile", "budget", "words"),
    [
        (False, {"deadline_ms": 9}, "needs a profile"),
        (True, {}, "needs something to choose by"),
        (True, {"reward_at_least": 3.0}, "best is best_of_4"),
    ],
)
def test_a_preset_that_cannot_be_answered_is_told_at_the_start(
    llm: LLM, start: Start, tmp_path: Path, with_profile: bool, budget: dict[str, Any], words: str
) -> None:
    path = tmp_path / "profile.json"
    read(path)
    presets = {"p": {"decoding": {"strategy": "auto", "budget": budget}}}
    values = {"presets": presets, **({"auto": str(path)} if with_profile else {})}
    with pytest.raises(InvalidSettings, match=words) as refusal:
        start(llm, Settings.model_validate(values))
    assert str(refusal.value).startswith("preset p: ")


def test_another_machine_is_told_in_the_log(
    llm: LLM, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(tmp_path / "profile.json", hardware={"cores": 999})
    with caplog.at_level(logging.WARNING, "trimtab.server"):
        start(llm, settings_of(tmp_path / "profile.json"))
    (told,) = [each.message for each in caplog.records if "auto" in each.message]
    assert "cores 999, here" in told
    assert "version 0, here" in told
    assert "device" not in told


def test_a_reload_replaces_the_profile_or_changes_nothing(llm: LLM, start: Start, tmp_path: Path) -> None:
    path, config = tmp_path / "profile.json", tmp_path / "trimtab.yaml"
    read(path)
    server = {"server": {"port": 0}}
    config.write_text(yaml.safe_dump({"auto": str(path), "presets": PRESETS, **server}), encoding="utf-8")
    source = Source(config)
    running = start(llm, source.load(), source.load)
    rounds = itertools.count()

    def setting_now() -> str:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 2, "seed": next(rounds)}
        asked = {**body, "decoding": {"strategy": "auto", "budget": {"deadline_ms": 10_000}}}
        return str(httpx2.post(running.url + "/v1/completions", json=asked).json()["decoding"]["auto"]["setting"])

    assert setting_now() == "best_of_4"
    read(path, settings=SETTINGS[:2])
    assert setting_now() == "best_of_4"
    assert running.service.reload() == []
    assert setting_now() == "steered"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InvalidSettings, match="not JSON"):
        running.service.reload()
    assert setting_now() == "steered"
    config.write_text(yaml.safe_dump(server), encoding="utf-8")
    assert running.service.reload() == []
    assert running.service.rules.frontier is None


def test_the_command_line_names_the_profile_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    told = CliRunner().invoke(app, ["serve", "--auto", str(path), "--port", "0", "--print-config"])
    assert told.exit_code == 0
    assert f"auto: {path}  # command line" in told.stdout.splitlines()
    plain = CliRunner().invoke(app, ["serve", "--print-config"])
    assert "auto: null  # default" in plain.stdout.splitlines()


def test_guides_of_the_settings_are_in_use_on_the_model_that_was_measured(served: Any, llm: LLM, fake: Any) -> None:
    users = served.service.rules.users("brevity", llm)
    assert users == ["setting best_of_2 of auto", "setting best_of_4 of auto"]
    assert served.service.rules.users("brevity", fake) == []
    with httpx2.Client(base_url=served.url, headers={"authorization": "Bearer operator"}) as operator:
        answer = operator.delete("/admin/guides/brevity")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "in_use")
    assert "setting best_of_2 of auto" in answer.json()["error"]["message"]


def test_requests_that_begin_at_the_same_time_count_each_other(served: Any, llm: LLM) -> None:
    body = {
        "model": "tiny",
        "prompt": "Hi",
        "max_tokens": 150,
        "ignore_eos": True,
        "decoding": {"strategy": "auto", "budget": {"reward_at_least": -5.0}},
    }

    def load(_: int) -> int:
        answer = httpx2.post(
            served.url + "/v1/completions", json=body, headers={"authorization": "Bearer free"}, timeout=60
        )
        return int(decoding(answer)["auto"]["concurrency"])

    with ThreadPoolExecutor(12) as pool:
        assert sorted(pool.map(load, range(12))) == list(range(1, 13))
    assert served.service.bridge.running(llm) == 0


def test_a_setting_that_cannot_run_is_passed_over(post: Post) -> None:
    given = {"budget": {"deadline_ms": 10_000}}
    assert decoding(post(given, "narrow"))["auto"]["setting"] == "best_of_2"
    assert decoding(post(given, "single"))["auto"]["setting"] == "steered"
    fewer = {"budget": {"deadline_ms": 10_000, "max_rows": 2}}
    assert decoding(post(fewer, "narrow"))["auto"]["setting"] == "best_of_4"


def test_where_no_setting_is_left_the_refusal_is_that_of_the_last(served: Any, post: Post) -> None:
    rows = refused(post({"budget": {"reward_at_least": 0.5}}, "single"), "decoding.budget.max_rows", 403)
    assert "this key may have 1" in rows
    long = [{"role": "user", "content": "a" * 600}]
    by_hand = post(None, messages=long).json()["error"]
    auto = post({"budget": {"deadline_ms": 10_000}}, messages=long)
    assert (auto.status_code, auto.json()["error"]) == (400, by_hand)
    assert {each.requests for each in served.service.quotas.describe().values()} == {0}


def test_a_caller_over_the_limit_costs_no_choice(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"budget": {"deadline_ms": 10_000}}
    decoding(post(given, "rationed"))
    monkeypatch.setattr("trimtab.server.service.resolve", None)
    assert post(given, "rationed").status_code == 429


def test_the_measured_model_may_be_unloaded_and_come_back(
    llm: LLM, fake: Any, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(tmp_path / "profile.json")
    service = start(llm, settings_of(tmp_path / "profile.json")).service
    service.add(fake)
    service.remove("tiny")
    with caplog.at_level(logging.WARNING, "trimtab.server"):
        assert service.reload() == []
    assert "measured on the model 'tiny' and served is fake" in caplog.text
    assert service.rules.frontier is not None
    service.add(llm)
    assert list(service.llms) == ["fake", "tiny"]


def test_it_is_available_while_its_model_is_served(llm: LLM, fake: Any, start: Start, tmp_path: Path) -> None:
    read(tmp_path / "profile.json")
    running = start(llm, settings_of(tmp_path / "profile.json"))

    def available() -> bool:
        return bool(httpx2.get(running.url + "/v1/strategies").json()["data"][-1]["available"])

    assert available()
    running.service.add(fake)
    running.service.remove("tiny")
    assert not available()


def test_the_environment_names_the_profile(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    told = CliRunner().invoke(app, ["serve", "--port", "0", "--print-config"], env={"TRIMTAB_AUTO": str(path)})
    assert told.exit_code == 0
    assert f"auto: {path}  # environment" in told.stdout


@pytest.mark.parametrize(("model", "words"), [("other", "measured on the model 'other'"), ("tiny", "in bfloat16")])
def test_the_doctor_tells_of_a_profile_that_does_not_fit(
    model_folder: Path, tmp_path: Path, model: str, words: str
) -> None:
    read(tmp_path / "profile.json", model=model, dtype="bfloat16")
    engine = {"model": str(model_folder), "dtype": "float32", "device": "cpu", "pool_tokens": 1024}
    found = examine(settings_of(tmp_path / "profile.json", server={"port": 0}, engine=engine))
    (problem,) = [each for each in found if each.name == "rules"]
    assert not problem.ok
    assert problem.finding.startswith("setting auto: ")
    assert words in problem.finding
