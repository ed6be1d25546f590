"""Rewards behind other servers: routes, what their answers must hold, loading, and scoring that waits for nothing."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from time import monotonic, sleep
from typing import Any

import pytest
from fake_scorer import FakeScorer
from gate import Gate
from pydantic import TypeAdapter, ValidationError
from running import wait_until
from starlette.responses import JSONResponse, Response
from toy import FunctionReward, Toy, random_table

from trimtab.engine.errors import (
    Cancelled,
    GuideError,
    GuideUnavailable,
    ModelLoadError,
    RemoteError,
    RemoteUnavailable,
    TrimtabError,
)
from trimtab.engine.guides.config import GuideConfigs, RemoteRewardConfig
from trimtab.engine.rating import Rating
from trimtab.engine.remote.settings import ConnectionSettings
from trimtab.engine.remote.stats import RemoteStats
from trimtab.engine.results import Failure, Result
from trimtab.engine.rewards import Pair, transports
from trimtab.engine.rewards.far import FarReward
from trimtab.engine.rewards.far_contract import examine_far
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.engine.vocabulary import Message

PROMPT = [70, 71]
SAMPLED = SamplingParams(temperature=1.0, seed=3)
BEST = {"strategy": "best_of_n", "n": 4, "reward": "taste"}


def config(url: str, **changes: object) -> RemoteRewardConfig:
    patient = {"backoff": 0.001, "retries": 1, "connections": 4, "guide": "taste"}
    return RemoteRewardConfig.model_validate({"url": url, **patient, **changes})


def pair(answer: str, *said: str, salt: bytes = b"") -> Pair:
    return Pair(tuple(Message(role="user", content=each) for each in said or ("Well?",)), answer, salt)


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeScorer]]:
    started: list[FakeScorer] = []

    def start(*arguments: Any, **options: Any) -> FakeScorer:
        started.append(FakeScorer(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def load() -> Iterator[Callable[..., FarReward]]:
    loaded: list[FarReward] = []

    def load(scorer: FakeScorer, **changes: object) -> FarReward:
        loaded.append(FarReward("taste", config(scorer.url, **changes)))
        return loaded[-1]

    yield load
    for each in loaded:
        each.close()


Serve = Callable[..., FakeScorer]
Load = Callable[..., FarReward]


@pytest.mark.parametrize(
    ("dialect", "path", "form"),
    [
        ("trimtab", "/v1/score", "conversations"),
        ("vllm", "/classify", "messages"),
        ("tokens", "/pooling", "messages"),
        ("reranker", "/score", "pairs"),
        ("sglang", "/v1/classify", "texts"),
    ],
)
def test_the_route_that_answers_is_found(serve: Serve, load: Load, dialect: str, path: str, form: str) -> None:
    scorer = serve(dialect)
    reward = load(scorer)
    assert (reward.route.path, reward.route.form) == (path, form)
    scorer.calls.clear()
    answers = ["a", "bbb", "cc"]
    assert reward.score([pair(each) for each in answers]) == [1.0, 3.0, 2.0]
    assert {path for path, _ in scorer.calls} == {path}
    assert len(scorer.calls) == (3 if reward.route.one_each else 1)
    assert all(body["model"] == "taste" for _, body in scorer.calls)


def test_what_is_sent(serve: Serve, load: Load) -> None:
    two = pair("Fine.", "Hi", "How?", salt=b"\x01\xff")
    talk = [{"role": "user", "content": text} for text in ("Hi", "How?")] + [{"role": "assistant", "content": "Fine."}]
    extras = {"use_activation": False, "truncate_prompt_tokens": -1, "truncation_side": "left"}
    wanted = {
        "trimtab": {"conversations": [talk]},
        "vllm": {"messages": talk, "cache_salt": "01ff", **extras},
        "reranker": {"text_1": ["Hi\nHow?"], "text_2": ["Fine."], **extras},
        "sglang": {"input": "Hi\nHow?\nFine.", **extras},
    }
    for dialect, body in wanted.items():
        scorer = serve(dialect)
        load(scorer).score([two])
        assert scorer.calls[-1][1] == {"model": "taste", **body}


def test_classes(serve: Serve, load: Load) -> None:
    """Fake logits of an answer of 6 characters: 6, or 3 and 6, or 2, 4 and 6."""
    six = [pair("abcdef")]
    assert load(serve("vllm")).score(six) == [6.0]
    assert load(serve("vllm", classes=2)).score(six) == [3.0]
    assert load(serve("vllm", classes=2), label=0).score(six) == [-3.0]
    assert load(serve("vllm", classes=3), label=1).score(six) == [4.0]
    named = serve("vllm", classes=3, names=("sad", "calm", "glad"))
    assert load(named, label="glad").score(six) == [6.0]
    assert load(named, label=0).labels == ("LABEL_0", "LABEL_1", "glad")


def test_probabilities_are_taken_by_their_logarithms(serve: Serve, load: Load) -> None:
    six = [pair("abcdef")]
    assert load(serve("sglang", classes=2, probabilities=True)).score(six) == pytest.approx([3.0])
    (told,) = load(serve("sglang", classes=3, probabilities=True), label=1).judge(six)
    assert told.score == pytest.approx(4 - math.log(math.exp(2) + math.exp(4) + math.exp(6)))
    assert load(serve("trimtab", probabilities=True), route="classify").score(six) == pytest.approx([6.0])


def test_tokens_are_counted(serve: Serve, load: Load) -> None:
    judged = load(serve("trimtab")).judge([pair("a"), pair("bbbb")])
    assert [each.tokens for each in judged] == [3, 2]  # equal parts of what the call read


def test_which_routes_are_tried(serve: Serve, load: Load) -> None:
    both = serve("trimtab", probabilities=True)
    assert load(both).route.kind == "score"
    assert load(both, route="classify").route.kind == "classify"
    assert load(both, label=0).route.kind == "classify"
    with pytest.raises(ModelLoadError, match="judges no answers") as told:
        load(both, route="pooling")
    assert "/pooling in messages" in str(told.value)
    assert "/score" not in str(told.value)


def test_a_guide_that_cannot_be_loaded_says_what_to_change(serve: Serve, load: Load) -> None:
    scorer = serve("vllm", classes=3)
    with pytest.raises(ModelLoadError, match="set `label` to the class"):
        load(scorer)
    with pytest.raises(ModelLoadError, match="no class 3: give one of 0 to 2"):
        load(scorer, label=3)
    with pytest.raises(ModelLoadError, match="give its number, 0 to 2"):
        load(scorer, label="glad")
    with pytest.raises(ModelLoadError, match="as model 'other': name it in `guide`"):
        load(serve("trimtab"), guide="other")
    with pytest.raises(ModelLoadError, match="http://, https://"):
        FarReward("taste", config("serve://app/taste"))
    url = scorer.url
    scorer.stop()
    with pytest.raises(ModelLoadError, match="cannot be reached"):
        FarReward("taste", config(url))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda told: [told], "data"),
        (lambda told: {**told, "data": told["data"][1:]}, "data: 1 entries for 2 answers"),
        (lambda told: {**told, "data": "no"}, "data"),
        (lambda told: put(told, "index", 0), r"data\[1\]\.index"),
        (lambda told: put(told, "index", 2), r"data\[1\]\.index"),
        (lambda told: put(told, "index", True), r"data\[1\]\.index"),
        (lambda told: put(told, "score", "high"), r"data\[1\]\.score"),
        (lambda told: put(told, "score", True), r"data\[1\]\.score"),
        (lambda told: put(told, "score", None), r"data\[1\]\.score"),
        (lambda told: {**told, "usage": {"prompt_tokens": "many"}}, "usage.prompt_tokens"),
        (lambda told: {**told, "usage": {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}}}, "cached"),
    ],
)
def test_every_field_of_a_score_is_checked(
    serve: Serve, load: Load, change: Callable[[dict[str, Any]], Any], field: str
) -> None:
    scorer = serve("trimtab")
    reward = load(scorer)
    scorer.change = change
    with pytest.raises(GuideError, match=field) as told:
        reward.judge([pair("secret"), pair("b")])
    assert told.value.guide == "taste"
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda told: put(told, "probs", [], 0), r"data\[0\]\.probs"),
        (lambda told: put(told, "probs", 0.5, 0), r"data\[0\]\.probs"),
        (lambda told: put(told, "probs", [1.0, None], 0), r"data\[0\]\.probs"),
        (lambda told: put(told, "num_classes", 3, 0), "num_classes"),
        (lambda told: put(told, "label", 1, 0), r"data\[0\]\.label"),
        (lambda told: put(put(told, "probs", [1.0], 0), "num_classes", 1, 0), "load it again"),
    ],
)
def test_every_field_of_classes_is_checked(
    serve: Serve, load: Load, change: Callable[[dict[str, Any]], Any], field: str
) -> None:
    scorer = serve("vllm", classes=2)
    reward = load(scorer)
    scorer.change = change
    with pytest.raises(GuideError, match=field):
        reward.judge([pair("a")])


def put(told: dict[str, Any], field: str, value: object, place: int = 1) -> dict[str, Any]:
    told["data"][place][field] = value
    return told


def test_answers_are_told_by_their_index(serve: Serve, load: Load) -> None:
    scorer = serve("trimtab")
    reward = load(scorer)
    scorer.change = lambda told: {**told, "data": told["data"][::-1]}
    assert reward.score([pair("a"), pair("bb"), pair("ccc")]) == [1.0, 2.0, 3.0]


def test_what_is_wrong_with_the_server_is_told_with_the_guides_name(serve: Serve, load: Load) -> None:
    scorer = serve("trimtab")
    reward = load(scorer)
    scorer.before = lambda path, body: JSONResponse(
        {"error": {"message": body["conversations"][0][-1]["content"]}}, 400
    )
    with pytest.raises(RemoteError, match="'taste'") as refused:
        reward.judge([pair("secret")])
    assert refused.value.refused
    assert "secret" not in str(refused.value)
    scorer.before = lambda path, body: Response("<html>", 200)
    with pytest.raises(RemoteError, match="'taste'") as garbage:
        reward.judge([pair("a")])
    assert not garbage.value.refused
    scorer.before = lambda path, body: JSONResponse({}, 503, {"retry-after": "77"})
    with pytest.raises(RemoteUnavailable, match="'taste'") as busy:
        reward.judge([pair("a")])
    assert (busy.value.retry_after, busy.value.guide, reward.stats.lost) == (77.0, "taste", True)
    scorer.before = lambda path, body: None
    assert reward.score([pair("a")]) == [1.0]
    assert not reward.stats.lost


def test_closed_it_fails_at_once_also_what_is_under_way(serve: Serve, load: Load) -> None:
    gate, scorer = Gate(), serve("vllm")
    reward = load(scorer)
    scorer.before = gate.before(scorer.before)
    asked = reward.ask([pair("a")] * 9)  # more than there are connections: some wait
    wait_until(lambda: gate.calls > 0)
    reward.close()
    for future in (asked, reward.ask([pair("a")])):
        with pytest.raises(RemoteUnavailable):
            future.result(5)
    gate.open()


def test_the_settings_name_what_is_wrong() -> None:
    configs = TypeAdapter(GuideConfigs)
    far = configs.validate_python({"taste": {"role": "remote_reward", "url": "http://host:8000/v1"}})["taste"]
    assert isinstance(far, RemoteRewardConfig)
    assert far.url == "http://host:8000"
    assert config("https://user:pass@host/x").place == "https://host/x"
    assert config("serve://app/deployment").url == "serve://app/deployment"
    for wrong, field in (
        ({"url": "host:8000"}, "is no address"),
        ({"url": "http://host", "served": "a"}, "named in `guide`"),
        ({"url": "http://host", "route": "score", "label": 1}, "label"),
        ({"url": "http://host", "route": "rerank"}, "route"),
        ({"url": "http://host", "gide": "a"}, "gide"),
    ):
        with pytest.raises(ValidationError, match=field):
            configs.validate_python({"taste": {"role": "remote_reward", **wrong}})


def test_a_deployment_brings_its_own_way_to_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    class Near:
        """Blocks, and counts as trimtab would answer."""

        def __init__(self, settings: ConnectionSettings, stats: RemoteStats) -> None:
            self.settings, self.closed = settings, False
            made.append(self)

        def post(self, path: str, body: Mapping[str, Any]) -> Any:
            if path != "/v1/score":
                raise RemoteError("no such route", refused=True)
            answers = [talk[-1]["content"] for talk in body["conversations"]]
            return {"data": [{"index": index, "score": len(answer)} for index, answer in enumerate(answers)]}

        def close(self) -> None:
            self.closed = True

    made: list[Near] = []
    monkeypatch.setattr(transports, "_FACTORIES", dict(transports._FACTORIES))
    transports.register("serve", Near)
    reward = FarReward("taste", config("serve://app/taste"))
    assert reward.score([pair("a"), pair("bb")]) == [1.0, 2.0]
    assert made[0].settings.url == "serve://app/taste"
    reward.close()
    assert made[0].closed


def test_examination(serve: Serve, load: Load) -> None:
    good = examine_far(load(serve("trimtab")))
    assert good.ok
    assert [each.name for each in good.findings] == ["route", "scores", "batches"]
    assert "/v1/score in conversations" in good.findings[0].finding
    flat = examine_far(load(serve("trimtab", judge=lambda answer: 2.0)))
    assert [each.ok for each in flat.findings] == [True, False]
    scorer = serve("trimtab")
    reward = load(scorer)

    def crowded(told: dict[str, Any]) -> dict[str, Any]:
        for entry in told["data"]:
            entry["score"] += 9.0 * (len(told["data"]) == 2)
        return told

    scorer.change = crowded
    unsteady = examine_far(reward)
    assert "batch 1, 2 and 7" in unsteady.findings[-1].finding
    assert not unsteady.ok
    scorer.before = lambda path, body: JSONResponse({}, 500)
    assert not examine_far(reward).ok


class Far:
    """A toy engine with a far reward whose answers the test gives."""

    def __init__(self, reward: FarReward, scorer: FakeScorer, **settings: object) -> None:
        given = {"max_rows": 64, "guides": {}, "guide_failures": 2, **settings}
        self.toy = Toy(random_table(256), rewards={"length": len}, settings=EngineSettings.model_validate(given))
        self.engine, self.stats = self.toy.engine, self.toy.stats
        self.scorer, self.reward = scorer, reward
        self.scoring = self.engine.scoring
        self.gate = Gate()
        scorer.calls.clear()
        scorer.before = self.gate.before(scorer.before)
        rewards = {**self.scoring.rewards, "taste": reward}
        self.engine.adopt(self.toy.models, self.toy.guides, rewards)

    def submit(self, decoding: object = BEST, **options: object) -> object:
        return self.toy.submit(PROMPT, SAMPLED, decoding=decoding, **options)  # type: ignore[arg-type]

    def rate(self, *answers: str, priority: int = 0) -> Rating:
        rating = Rating("taste", [pair(answer) for answer in answers], priority)
        self.engine.rate(rating)
        return rating

    def send(self, calls: int = 1) -> None:
        """Tick until so many calls stand at the server's gate."""
        self.until(lambda: self.gate.calls >= calls)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = monotonic() + 30
        while not condition():
            assert monotonic() < deadline
            self.engine.tick()

    def finish(self) -> None:
        self.gate.open()
        self.until(lambda: self.engine.idle and not self.scoring.waiting)
        self.toy.finish()


@pytest.fixture
def far(serve: Serve, load: Load) -> Iterator[Callable[..., Far]]:
    made: list[Far] = []

    def make(dialect: str = "trimtab", *, connections: int = 4, **settings: object) -> Far:
        scorer = serve(dialect)
        made.append(Far(load(scorer, connections=connections), scorer, **settings))
        return made[-1]

    yield make
    for each in made:
        each.gate.open()


def scores(rating: Rating) -> list[float]:
    return [judgement.score for judgement in rating.future.result(0)]


def test_a_search_gets_the_scores_that_a_local_reward_would_give(far: Callable[..., Far]) -> None:
    for dialect in ("trimtab", "vllm"):
        made = far(dialect)
        near, there = made.submit({**BEST, "reward": "length"}), made.submit()
        made.finish()
        rewards = [[each.reward for each in made.toy.result(handle).candidates] for handle in (near, there)]
        assert rewards[0] == rewards[1]
        assert made.toy.result(near).choices == made.toy.result(there).choices
        usage = made.toy.result(there).usage
        assert usage.model_tokens["taste"] == sum(rewards[1])  # type: ignore[arg-type]
        assert made.stats.model_tokens["taste"] == usage.model_tokens["taste"]
        assert usage.forwards["taste"] == 1
        assert made.stats.reward_batch_size["taste"].sum == 4
        assert sum(made.stats.reward_latency["taste"].counts) == 1
        assert made.stats.remotes["taste"] is made.reward.stats


def test_decoding_does_not_wait(far: Callable[..., Far]) -> None:
    made = far()
    there = made.submit()
    made.send()
    assert made.scoring.waiting
    other = made.submit(None)
    for _ in range(20):
        made.engine.tick()
    assert isinstance(made.toy.end(other), Result)
    assert made.toy.events[there] == []
    made.finish()
    assert not made.scoring.waiting
    assert isinstance(made.toy.end(there), Result)


def test_the_engine_is_woken(serve: Serve, load: Load) -> None:
    scorer = serve("trimtab")
    woken: list[bool] = []
    made = Far(load(scorer), scorer)
    made.scoring._away._wake = lambda: woken.append(True)
    made.submit()
    made.send()
    assert woken == []
    made.gate.open()
    wait_until(lambda: woken == [True])
    assert made.scoring.waiting
    made.finish()


def test_what_only_waits_is_told(far: Callable[..., Far]) -> None:
    made = far(connections=1)
    first, second = made.submit(), made.submit(BEST, priority=1)
    jobs = [made.engine._jobs[handle] for handle in (first, second)]
    assert not any(map(made.scoring.waits, jobs))
    made.send()
    made.engine.tick()
    assert all(map(made.scoring.waits, jobs))  # for an answer, and for the connection
    assert made.engine.rests
    assert made.scoring.waits(made.rate("a"))
    made.finish()


def test_requests_share_batches_and_go_by_priority(far: Callable[..., Far]) -> None:
    made = far(connections=1, score_pairs=4)
    made.rate("a", "b")
    made.send()
    late, soon = made.rate("cc", "dd", "ee", priority=1), made.rate("f", "g")
    made.finish()
    batches = [[talk[-1]["content"] for talk in body["conversations"]] for _, body in made.scorer.calls]
    assert batches == [["a", "b"], ["f", "g", "cc", "dd"], ["ee"]]
    assert (scores(late), scores(soon)) == ([2.0] * 3, [1.0] * 2)


def test_no_more_calls_than_connections(far: Callable[..., Far]) -> None:
    made = far("vllm", connections=3)
    rating = made.rate(*"abcdefgh")
    made.send(3)
    for _ in range(20):
        made.engine.tick()
    assert (made.gate.calls, made.reward.room(9)) == (3, 0)
    made.finish()
    assert scores(rating) == [1.0] * 8


def test_a_batch_for_each_tick_while_there_are_connections(far: Callable[..., Far]) -> None:
    made = far(connections=3)
    ratings = []
    for count in (1, 2, 3):
        ratings.append(made.rate("a"))
        made.send(count)
    made.finish()
    assert [scores(each) for each in ratings] == [[1.0]] * 3


def test_what_is_cancelled_meanwhile_is_dropped(far: Callable[..., Far]) -> None:
    made = far()
    gone, kept, rating, left = made.submit(), made.submit(), made.rate("aa"), made.rate("b")
    made.until(lambda: sum(len(body["conversations"]) for _, body in made.scorer.calls) == 10)
    made.engine.cancel(gone)
    assert left.future.cancel()
    made.finish()
    assert isinstance(made.toy.end(gone), Failure)
    assert isinstance(made.toy.end(gone).error, Cancelled)  # type: ignore[union-attr]
    assert isinstance(made.toy.end(kept), Result)
    assert scores(rating) == [2.0]


def test_a_deadline_that_passes_meanwhile_ends_the_search_with_the_best_so_far(far: Callable[..., Far]) -> None:
    made = far()
    handle = made.submit()
    made.send()
    made.engine._interrupt(made.engine._jobs[handle], "deadline_ms")
    made.send(2)  # its last batch, too
    began = monotonic()
    made.until(lambda: bool(made.toy.events[handle]))
    assert 0.3 < monotonic() - began < 20
    result = made.toy.result(handle)
    assert result.stopped_by == "deadline_ms"
    assert [each.reward for each in result.candidates] == [None] * 4
    assert made.scoring.waiting
    made.finish()
    assert made.stats.guide_errors == {}


def test_a_deadline_waits_for_the_last_word_of_a_server_that_answers(far: Callable[..., Far]) -> None:
    made = far()
    handle = made.submit()
    made.send()
    made.engine._interrupt(made.engine._jobs[handle], "deadline_ms")
    made.send(2)
    made.finish()
    result = made.toy.result(handle)
    assert result.stopped_by == "deadline_ms"
    assert [each.value for each in result.candidates] == [len(each.text) for each in result.candidates]
    assert result.choices[0].text == max((each.text for each in result.candidates), key=len)


def test_an_interrupted_search_gets_nothing_of_what_it_asked_before(far: Callable[..., Far]) -> None:
    """Its program yields another Score: the answers to the first one are not for it."""
    made = far()
    handle = made.submit()
    made.send()
    job = made.engine._jobs[handle]
    op = job.op
    assert made.scoring._away.holds(job)
    job.op = type(op)(op.sequences[:1], op.reward)  # type: ignore[union-attr, call-arg, arg-type]
    assert not made.scoring._away.holds(job)
    made.send(2)
    assert [len(body["conversations"]) for _, body in made.scorer.calls] == [4, 1]
    job.op = op
    job.rewards = []
    made.engine.cancel(handle)
    made.finish()


def test_a_job_that_fails_meanwhile(far: Callable[..., Far]) -> None:
    made = far()
    handle = made.submit()
    made.send()
    made.engine.fail_all(TrimtabError("broken"))
    assert isinstance(made.toy.end(handle), Failure)
    assert made.engine.idle
    made.finish()


def bad(path: str, body: dict[str, Any]) -> Response | None:
    """Refuse answers of one text."""
    answers = [talk[-1]["content"] for talk in body.get("conversations", [body.get("messages")])]
    return JSONResponse({"error": {"code": "too_long"}}, 400) if "bad" in answers else None


def test_an_answer_that_the_server_refuses_fails_its_own_request(far: Callable[..., Far]) -> None:
    for dialect in ("trimtab", "vllm"):
        made = far(dialect)
        made.scorer.before = bad
        good, other, spoiled = made.rate("a"), made.rate("cc"), made.rate("b", "bad")
        handle = made.submit()
        made.finish()
        assert (scores(good), scores(other)) == ([1.0], [2.0])
        assert isinstance(made.toy.end(handle), Result)
        with pytest.raises(RemoteError, match="'taste'"):
            spoiled.future.result(0)
        assert made.stats.guide_errors == {"taste": 1}
        assert made.engine.circuits.quiet, "that one answer is refused says nothing of others"


def test_answers_that_fail_lose_where_the_settings_say_so(far: Callable[..., Far]) -> None:
    made = far(reward_errors="lose")
    texts = [each.text for each in run(made).candidates]

    def one_wrong(told: dict[str, Any]) -> dict[str, Any]:
        body = made.scorer.calls[-1][1]
        for entry, talk in zip(told["data"], body["conversations"], strict=True):
            entry["score"] = "x" if talk[-1]["content"] == texts[1] else entry["score"]
        return told

    made.scorer.change = one_wrong
    rewards = [each.reward for each in run(made).candidates]
    assert [reward is None or math.isnan(reward) for reward in rewards] == [False, True, False, False]
    assert [rewards[index] for index in (0, 2, 3)] == [len(texts[index]) for index in (0, 2, 3)]


def run(made: Far) -> Result:
    handle = made.submit()
    made.finish()
    return made.toy.result(handle)


@pytest.mark.parametrize("errors", ["fail", "lose"])
def test_a_server_that_is_gone(far: Callable[..., Far], errors: str) -> None:
    made = far(reward_errors=errors, guide_retry_after=0.05)
    made.scorer.before = lambda path, body: JSONResponse({}, 503, {"retry-after": "60"})
    first, second = made.submit(), made.submit()
    rating = made.rate("a")
    made.finish()
    with pytest.raises(RemoteUnavailable) as gone:
        rating.future.result(0)
    assert gone.value.retry_after == 60.0
    for handle in (first, second):
        end = made.toy.end(handle)
        if errors == "fail":
            assert isinstance(end, Failure)
            assert isinstance(end.error, RemoteUnavailable)
        else:
            assert isinstance(end, Failure)
            assert "gave NaN for every candidate" in str(end.error)
    assert made.stats.guide_errors == {"taste": 3}
    assert made.stats.guide_circuit == {"taste": 1}
    with pytest.raises(GuideUnavailable):
        made.engine.circuits.enter(["taste"])
    made.scorer.before = lambda path, body: None
    sleep(0.06)
    made.engine.circuits.enter(["taste"])  # one is let through, and its success closes it
    assert len(run(made).candidates) == 4
    assert made.stats.guide_circuit == {"taste": 0}


def test_a_failure_for_which_nobody_waits_any_more_counts(far: Callable[..., Far]) -> None:
    made = far()
    made.scorer.before = made.gate.before(lambda path, body: JSONResponse({}, 500))
    handle = made.submit()
    made.send()
    made.engine.cancel(handle)
    made.finish()
    assert made.stats.guide_errors == {"taste": 1}
    assert not made.engine.circuits.quiet


def test_unloaded_it_hangs_up_and_its_answers_are_dropped(far: Callable[..., Far]) -> None:
    made = far()
    rating = made.rate("a")
    made.send()
    rating.future.cancel()
    made.engine.tick()
    assert made.engine.uses("taste") == 0
    made.engine.adopt(made.toy.models, made.toy.guides, {"length": FunctionReward("length", len)})
    assert made.stats.remotes == {}
    made.finish()
    assert made.stats.guide_errors == {}
    closed: Future[Any] = made.reward.ask([pair("a")])
    with pytest.raises(RemoteUnavailable):
        closed.result(5)


def test_long_lists_come_in_parts_of_the_batch_size(far: Callable[..., Far]) -> None:
    made = far(score_pairs=3)
    rating = made.rate(*(each * (index + 1) for index, each in enumerate("abcdefg")))
    made.finish()
    assert scores(rating) == [1, 2, 3, 4, 5, 6, 7]
    sizes: Sequence[int] = [len(body["conversations"]) for _, body in made.scorer.calls]
    assert sizes == [3, 3, 1]
