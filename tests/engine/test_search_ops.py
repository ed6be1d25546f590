"""Ops and context of searches: steps, second readings, other voices, final text, budgets and the best so far."""

import math
import sys
from array import array
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from far_toy import FarToy
from toy import FunctionReward, Toy, byte_tokenizer, random_table

from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.budget import Budget
from trimtab.engine.guides.heads import ValueHead
from trimtab.engine.plan import BASE, LanePlan, SteerPlan
from trimtab.engine.program import Answer, Context, Conversation, Draw, Extend, LogProbs, Op, Propose, Score, Until
from trimtab.engine.request import Opening, Request
from trimtab.engine.results import Delta, Failure, Progress, Result
from trimtab.engine.rewards import Judgement, Pair
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.engine.vocabulary import Message, TextStream, Vocabulary

VOCAB, PROMPT = 12, [1, 5, 2]
TABLE, OTHER = random_table(VOCAB), random_table(VOCAB, scale=2.5)
WORDS = Vocabulary(byte_tokenizer())
SAMPLED = SamplingParams(seed=3, max_tokens=8)
Run = Callable[[Context], Generator[Op, Any, Answer]]
HERE_ALONE = {
    "test_a_step_ends_before_the_token_of_high_entropy",
    "test_reading_again_costs_only_what_is_read",
    "test_a_value_head_reads_the_last_hidden_state_of_any_answer",
    "test_a_proposal_passes_on_to_forks_that_draw_their_own_tokens",
    "test_a_kl_limit_ends_the_answer_where_it_is_passed",
    "test_measures_are_the_same_whether_or_not_the_pass_has_more_to_do",
    "test_a_token_that_a_program_has_chosen_counts_as_certain",
}


@pytest.fixture(params=[Toy, FarToy], ids=["here", "remote"], autouse=True)
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test twice: with a base that runs here, and with one that another server runs, where that can be."""
    if request.param is FarToy and request.node.originalname in HERE_ALONE:
        pytest.skip("it needs the base's distributions or its pages, or counts single ticks")
    monkeypatch.setattr(sys.modules[__name__], "Toy", request.param)


class Script:
    """A program that a test writes down; interrupted, it answers with what it has, the longest first."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def rows(self, choices: int) -> int:
        return 4

    def interrupted(self, context: Context, reason: str) -> Generator[Op, Any, Answer]:
        alive = sorted((each for each in context.prompt.family if each.generated), key=lambda each: -each.generated)
        chosen = alive[:1] or context.prompt.fork(1)
        yield Score(chosen, "last")
        return Answer(chosen, alive, {"left": len(alive)}, stopped_by=reason)


def play(
    toy: Toy,
    run: Run,
    sampling: SamplingParams = SAMPLED,
    *,
    decoding: Any = None,
    calls: Sequence[str] = (),
    budget: Budget | None = None,
    rows: int = 4,
    measured: bool = False,
    progress: bool = False,
    prompt: Sequence[int] = PROMPT,
) -> object:
    """Submit a program; `calls` names the models that it may ask for."""
    spec, handle = DecodingSpec.parse(decoding), object()
    toy.events[handle] = []
    plan = toy.plan(prompt, sampling, spec)
    lanes = tuple(LanePlan(name, name, array("q", prompt), called=True) for name in calls)
    plan = SteerPlan(
        sampling, sampling.seed or 0, toy._eos, plan.variant, (*plan.lanes, *lanes), plan.base_weight, plan.mixture,
        measured=measured,
    )  # fmt: skip

    def opener(conversation: Conversation) -> Opening:
        model = conversation.model
        ids = array("q", map(int, str(conversation.messages[-1]["content"]).split()))
        stream = TextStream(toy.vocabulary)
        if model == BASE:
            return Opening(ids, plan, stream, len(ids) + 4)
        alone = SteerPlan(sampling, sampling.seed or 0, toy._eos)
        return Opening(ids, alone, stream, len(ids) + 4, LanePlan(model, model, ids))

    toy.engine.submit(
        Request(
            handle=handle,
            deliver=toy._deliver,
            prompt=array("q", prompt),
            messages=(),
            program=Script(run),
            plan=plan,
            text=TextStream(toy.vocabulary, stop=sampling.stop),
            choices=1,
            rows=rows,
            max_tokens=8 if sampling.max_tokens is None else sampling.max_tokens,
            budget=budget or Budget(),
            progress=progress,
            opener=opener,
        )
    )
    return handle


def told(toy: Toy, run: Run, *arguments: Any, **options: Any) -> Result:
    handle = play(toy, run, *arguments, **options)
    toy.finish()
    return toy.result(handle)


def spelled(tokens: Sequence[int]) -> str:
    return WORDS.decode(list(tokens))


def logprob(table: Callable[[Sequence[int]], np.ndarray], prefix: Sequence[int], token: int) -> float:
    z = table(prefix)
    return float(z[token] - np.log(np.exp(z - z.max()).sum()) - z.max())


def logprobs(table: Callable[[Sequence[int]], np.ndarray], answer: Sequence[int], start: int = 0) -> list[float]:
    return [logprob(table, [*PROMPT, *answer[:at]], answer[at]) for at in range(start, len(answer))]


def entropy(prefix: Sequence[int]) -> float:
    z = TABLE(prefix)
    p = np.exp(z - z.max())
    p /= p.sum()
    return float(-(p * np.log(p)).sum())


def test_a_step_ends_with_the_token_that_completes_a_string_or_an_ending() -> None:
    plain = Toy(TABLE).run(PROMPT, SAMPLED).choices[0].token_ids
    pair, single = spelled(plain[2:4]), spelled(plain[4:5])
    ends: list[list[int]] = []

    def run(context: Context) -> Generator[Op, Any, Answer]:
        (draft,) = context.prompt.fork(1)
        for until in (Until(strings=(pair,)), Until(endings=(single,)), Until(strings=("never",))):
            yield Extend([draft], until=until)
            ends.append(list(draft.answer))
        return Answer([draft], [draft])

    assert told(Toy(TABLE), run).choices[0].token_ids == plain, "the steps change nothing"
    first = next(end for end in range(2, 9) if pair in spelled(plain[:end]))
    second = next(end for end in range(first + 1, 9) if spelled(plain[end - 1 : end]) == single)
    assert ends == [list(plain[:first]), list(plain[:second]), list(plain)]


def test_what_a_step_holds_counts_from_min_tokens_on_and_from_its_own_beginning() -> None:
    plain = Toy(TABLE).run(PROMPT, SAMPLED).choices[0].token_ids
    everything = tuple(spelled([token]) for token in range(VOCAB))
    ends: list[int] = []

    def run(context: Context) -> Generator[Op, Any, Answer]:
        (draft,) = context.prompt.fork(1)
        yield Extend([draft], until=Until(endings=everything, min_tokens=3))
        ends.append(draft.generated)
        yield Extend([draft], max_tokens=2, until=Until(endings=everything, min_tokens=3))
        ends.append(draft.generated)
        yield Extend([draft], until=Until(strings=(spelled(plain[:1]),), min_tokens=1))
        ends.append(draft.generated)
        return Answer([draft], [draft])

    told(Toy(TABLE), run)
    again = next((at + 1 for at in range(5, 8) if plain[at] == plain[0]), 8)
    assert ends == [3, 5, again]


@pytest.mark.parametrize("seed", range(6))
def test_a_step_ends_before_the_token_of_high_entropy(seed: int) -> None:
    limit, shortest, steps = 1.9, 2, []
    sampling = SamplingParams(seed=seed, max_tokens=12)

    def run(context: Context) -> Generator[Op, Any, Answer]:
        (draft,) = context.prompt.fork(1)
        while draft.finish is None:
            yield Extend([draft], max_tokens=6, until=Until(entropy=limit, min_tokens=shortest))
            steps.append(draft.generated)
        return Answer([draft], [draft])

    answer = told(Toy(TABLE), run, sampling, measured=True).choices[0].token_ids
    assert answer == Toy(TABLE).run(PROMPT, sampling).choices[0].token_ids, "a token drawn in vain is drawn again"
    expected, start = [], 0
    while start < len(answer):
        end = start + shortest
        while end < min(start + 6, len(answer)) and entropy([*PROMPT, *answer[:end]]) < limit:
            end += 1
        start = min(end, len(answer))
        expected.append(start)
    assert steps == expected


def test_the_first_that_finishes_answers_the_op() -> None:
    def run(context: Context) -> Generator[Op, Any, Answer]:
        drafts = context.prompt.fork(4)
        order: list[tuple[int, ...]] = []
        live = list(drafts)
        while live:
            yield Extend(live, first=True)
            ended = [draft for draft in live if draft.finish is not None]
            assert ended
            assert len({draft.generated for draft in live}) == 1, "all have grown as far"
            order.append(tuple(drafts.index(draft) for draft in ended))
            live = [draft for draft in live if draft.finish is None]
        return Answer(drafts[:1], drafts, {"order": order})

    sampling = SamplingParams(seed=5, max_tokens=30)
    toy = Toy(random_table(VOCAB, scale=0.8), eos=4)
    result = told(toy, run, sampling)
    lengths = [candidate.tokens for candidate in result.candidates]
    waves = sorted(set(lengths))
    assert len(waves) > 1
    assert result.report["order"] == [tuple(i for i in range(4) if lengths[i] == n) for n in waves]


def test_more_sequences_than_rows_take_turns_and_say_the_same() -> None:
    def run(context: Context) -> Generator[Op, Any, Answer]:
        drafts = context.prompt.fork(4)
        yield Extend(drafts)
        return Answer(drafts[:1], drafts)

    narrow, wide = Toy(TABLE), Toy(TABLE)
    apart, together = told(narrow, run, rows=1), told(wide, run, rows=4)
    assert [each.text for each in apart.candidates] == [each.text for each in together.candidates]
    assert set(narrow.runner.widths) == {1}
    assert max(wide.runner.widths) == 4


@pytest.mark.parametrize("model", [BASE, "other"])
@pytest.mark.parametrize("start", [0, 3, 8])
def test_log_probabilities_are_those_of_the_model_alone(model: str, start: int) -> None:
    """Of unsteered models, whatever the answer was drawn from, and the answer goes on as if nothing had been read."""
    found: list[Any] = []

    def run(context: Context) -> Generator[Op, Any, Answer]:
        drafts = context.prompt.fork(2)
        yield Extend(drafts, max_tokens=5)
        found.append((yield LogProbs(drafts, model, start=[min(start, 5), 0])))
        yield Extend(drafts)
        found.append((yield LogProbs(drafts, model, start)))
        return Answer(drafts, drafts)

    toy = Toy(TABLE)
    toy.add_lm("other", OTHER)
    toy.add_lm("arm", random_table(VOCAB, scale=3.0))
    steer = {"strategy": "genarm", "arm": "arm", "alpha": 0.7}
    sampling = SAMPLED.model_copy(update={"temperature": 0.6})
    result = told(toy, run, sampling, decoding=steer, calls=["other"])
    table = TABLE if model == BASE else OTHER
    answers = [choice.token_ids for choice in result.choices]
    assert found[0][0] == pytest.approx(logprobs(table, answers[0][:5], min(start, 5)), abs=1e-5)
    assert found[0][1] == pytest.approx(logprobs(table, answers[1][:5]), abs=1e-5)
    for tokens, known in zip(answers, found[1], strict=True):
        assert known == pytest.approx(logprobs(table, tokens, start), abs=1e-5)
    plain = Toy(TABLE)
    plain.add_lm("arm", random_table(VOCAB, scale=3.0))
    assert answers[0] == plain.run(PROMPT, sampling, decoding=steer).choices[0].token_ids


def test_reading_again_costs_only_what_is_read() -> None:
    """Called models read the prompt once and each token once."""

    def run(context: Context) -> Generator[Op, Any, Answer]:
        drafts = context.prompt.fork(3)
        for start in (0, 4):
            yield Extend(drafts, max_tokens=4)
            yield LogProbs(drafts, "other", start)
        return Answer(drafts[:1], drafts)

    toy = Toy(TABLE)
    other = toy.add_lm("other", OTHER)
    result = told(toy, run, calls=["other"])
    assert result.choices[0].steering is None, "who only reads steers nothing"
    usage = result.usage
    assert toy.runner.prefilled == other.prefilled == len(PROMPT) - 1
    assert usage.model_tokens["other"] == len(PROMPT) - 1 + 3 * 8
    assert usage.model_tokens[BASE] == len(PROMPT) - 1 + 3 * 8


def test_a_value_head_reads_the_last_hidden_state_of_any_answer() -> None:
    found: list[Any] = []

    def run(context: Context) -> Generator[Op, Any, Answer]:
        drafts = context.prompt.fork(2)
        for count in (2, None):
            yield Extend(drafts, max_tokens=count)
            found.append(((yield Score(drafts, "state")), [list(draft.answer) for draft in drafts]))
        return Answer(drafts, drafts)

    weights = torch.linspace(-1, 1, VOCAB)[None]
    toy = Toy(TABLE)
    toy.add_head("state", ValueHead([weights], [torch.tensor([0.25])]))
    result = told(toy, run)
    for values, answers in found:
        states = [TABLE([*PROMPT, *answer]) for answer in answers]
        assert values == pytest.approx([float(weights[0].double().numpy() @ z) + 0.25 for z in states], abs=1e-5)
    assert result.choices[0].token_ids == Toy(TABLE).run(PROMPT, SAMPLED).choices[0].token_ids


def test_a_voice_writes_alone_and_the_others_catch_up() -> None:
    parts: list[list[int]] = []

    def run(context: Context) -> Generator[Op, Any, Answer]:
        (draft,) = context.voiced(context.prompt, 1, "other")
        yield Extend([draft], max_tokens=3)
        parts.append(list(draft.answer))
        (mine,) = context.steered(draft, 1)
        draft.free()
        yield Extend([mine], max_tokens=2)
        parts.append(list(mine.answer))
        (plain,) = context.voiced(mine, 1, BASE)
        mine.free()
        yield Extend([plain], max_tokens=2)
        return Answer([plain], [plain])

    toy = Toy(TABLE)
    other = toy.add_lm("other", OTHER)
    arm = toy.add_lm("arm", random_table(VOCAB, scale=3.0))
    greedy = SamplingParams(temperature=0.0, max_tokens=7, seed=1)
    steer = {"strategy": "genarm", "arm": "arm", "alpha": 2.0}
    answer = list(told(toy, run, greedy, decoding=steer, calls=["other"]).choices[0].token_ids)
    expected: list[int] = []
    for at in range(7):
        prefix = [*PROMPT, *expected]
        z = OTHER(prefix) if at < 3 else TABLE(prefix) + 2.0 * arm.logits(prefix) if at < 5 else TABLE(prefix)
        expected.append(int(z.argmax()))
    assert answer == expected
    assert other.prefilled == len(PROMPT) - 1
    assert len(toy.runner.widths) == 4, "the base is silent at first"


def test_a_proposal_passes_on_to_forks_that_draw_their_own_tokens() -> None:
    def run(context: Context) -> Generator[Op, Any, Answer]:
        (root,) = context.prompt.fork(1)
        (proposal,) = yield Propose([root], 3)
        children = root.fork(3)
        yield Draw(children, [{token: 0.0} for token in proposal])
        yield Extend(children, max_tokens=1)
        return Answer(children[:1], children, {"tokens": list(proposal)})

    toy = Toy(TABLE)
    sampling = SAMPLED.model_copy(update={"logprobs": 0})
    result = told(toy, run, sampling)
    assert [each.text[0] for each in result.candidates] == [spelled([token]) for token in result.report["tokens"]]
    (logprobs_,) = [choice.logprobs for choice in result.choices]
    assert logprobs_ is not None
    assert [each.logprob for each in logprobs_] == pytest.approx(logprobs(TABLE, result.choices[0].token_ids), abs=1e-5)


def test_another_conversation_is_answered_under_its_own_prompt() -> None:
    def run(context: Context) -> Generator[Op, Any, Answer]:
        mine = context.start([Message(role="user", content="7 3 4")])
        theirs = context.start([Message(role="user", content="2 6")], "other")
        yield Extend([mine, theirs])
        theirs.candidate = False
        said = context.say(theirs.text.text[:2])
        return Answer([mine], [mine, said], {"theirs": list(theirs.answer)})

    toy = Toy(TABLE)
    toy.add_lm("other", OTHER)
    greedy = SamplingParams(temperature=0.0, max_tokens=4, seed=1)
    result = told(toy, run, greedy)
    for answer, table, prefix in (
        (result.choices[0].token_ids, TABLE, [7, 3, 4]),
        (result.report["theirs"], OTHER, [2, 6]),
    ):
        seen = list(prefix)
        for token in answer:
            assert token == int(table(seen).argmax())
            seen.append(token)
        assert len(answer) == 4
    assert result.candidates[1].text == spelled(result.report["theirs"][:2])
    assert result.candidates[1].finish_reason == "stop"


def test_what_is_declared_final_is_sent_once_and_begins_the_answer() -> None:
    def run(context: Context) -> Generator[Op, Any, Answer]:
        (draft,) = context.prompt.fork(1)
        yield Extend([draft], max_tokens=3)
        twins = draft.fork(2)
        context.commit(draft)
        context.commit(draft)
        yield Extend(twins, max_tokens=3)
        context.commit_shared(twins)
        yield Extend(twins)
        return Answer(twins[1:], twins)

    sampling = SAMPLED.model_copy(update={"logprobs": 0})
    toy = Toy(TABLE)
    handle = play(toy, run, sampling)
    toy.finish()
    deltas, (choice,) = toy.deltas(handle), toy.result(handle).choices
    assert len(deltas) >= 2
    assert len(deltas[0].token_ids) == 3
    assert "".join(delta.text for delta in deltas) == choice.text
    assert sum((delta.token_ids for delta in deltas), ()) == choice.token_ids
    assert sum((delta.logprobs or () for delta in deltas), ()) == choice.logprobs


def test_a_search_that_takes_final_text_back_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    def run(context: Context) -> Generator[Op, Any, Answer]:
        drafts = context.prompt.fork(4)
        yield Extend(drafts, max_tokens=4)
        context.commit(drafts[0])
        other = next(draft for draft in drafts if draft.answer != drafts[0].answer)
        return Answer([other], drafts)

    toy = Toy(TABLE)
    handle = play(toy, run)
    neighbour = toy.submit(PROMPT, SAMPLED)
    toy.finish()
    assert isinstance(toy.end(handle), Failure)
    assert toy.result(neighbour).choices[0].token_ids == Toy(TABLE).run(PROMPT, SAMPLED).choices[0].token_ids
    assert "went back" in caplog.text


def forever(context: Context) -> Generator[Op, Any, Answer]:
    """Draws answers and forgets them again."""
    while True:
        drafts = context.prompt.fork(2)
        yield Extend(drafts, max_tokens=3)
        for draft in drafts:
            draft.free()


@pytest.mark.parametrize(
    ("budget", "reason"),
    [(Budget(deadline_ms=20), "deadline_ms"), (Budget(max_model_tokens=40), "max_model_tokens")],
)
def test_what_runs_out_ends_the_program_with_what_there_is(budget: Budget, reason: str) -> None:
    toy = Toy(TABLE, rewards={"last": lambda text: float(len(text))})
    result = told(toy, forever, budget=budget)
    assert result.stopped_by == reason
    assert result.choices[0].finish_reason == "length"
    if reason == "max_model_tokens":
        again = 4 if isinstance(toy, FarToy) else 0  # a page that every call reads again
        assert 40 <= result.usage.model_tokens[BASE] <= 40 + 2 * (2 + again), "at most two ticks of two rows more"


def test_a_deadline_that_is_over_at_once_answers_without_a_forward() -> None:
    toy = Toy(TABLE, rewards={"last": lambda text: 1.0})
    handle = play(toy, forever, budget=Budget(deadline_ms=1))
    while not toy.engine.scheduler.waiting[0].overspent:
        pass
    toy.finish()
    result = toy.result(handle)
    assert result.stopped_by == "deadline_ms"
    assert result.choices[0].text == ""
    assert toy.runner.widths == []


def test_partial_answers_say_what_was_held_back_for_a_stop_string() -> None:
    plain = Toy(TABLE).run(PROMPT, SAMPLED).choices[0].text

    def run(context: Context) -> Generator[Op, Any, Answer]:
        (draft,) = context.prompt.fork(1)
        yield Extend([draft], max_tokens=4)
        return Answer([draft], [draft])

    toy = Toy(TABLE)
    handle = play(toy, run, SAMPLED.model_copy(update={"stop": (plain[2:4] + "never",)}))
    toy.finish()
    assert toy.result(handle).choices[0].text == plain[:4]
    assert "".join(delta.text for delta in toy.deltas(handle)) == plain[:4]


def test_a_kl_limit_ends_the_answer_where_it_is_passed() -> None:
    toy = Toy(TABLE)
    toy.add_lm("arm", random_table(VOCAB, scale=3.0))
    decoding: dict[str, Any] = {"strategy": "genarm", "arm": "arm", "alpha": 1.0, "trace": "tokens"}
    free = toy.run(PROMPT, SAMPLED, decoding=decoding)
    trace = free.choices[0].trace
    assert trace is not None
    kls = [each.kl or 0.0 for each in trace]
    limit = sum(kls[:3]) - 1e-3
    bound = toy.run(PROMPT, SAMPLED, decoding={**decoding, "budget": {"max_kl": limit}})
    assert bound.choices[0].token_ids == free.choices[0].token_ids[:3]
    assert bound.stopped_by == "max_kl"
    assert bound.choices[0].finish_reason == "length"
    loose = toy.run(PROMPT, SAMPLED, decoding={**decoding, "budget": {"max_kl": sum(kls) + 1}})
    assert loose.choices[0].token_ids == free.choices[0].token_ids
    assert loose.stopped_by == "finished"


def test_progress_is_told_after_every_op_if_asked_for() -> None:
    def run(context: Context) -> Generator[Op, Any, Answer]:
        drafts = context.prompt.fork(3)
        yield Extend(drafts[:1])
        (drafts[0].reward,) = yield Score(drafts[:1], "last")
        yield Extend(drafts)
        return Answer(drafts[:1], drafts)

    toy = Toy(TABLE, rewards={"last": lambda text: 7.0})
    asked, silent = play(toy, run, progress=True), play(toy, run)
    toy.finish()
    steps = [event for event in toy.events[asked] if isinstance(event, Progress)]
    assert [(each.phase, each.candidates, each.finished, each.best_reward) for each in steps] == [
        ("decode", 3, 1, None),
        ("score", 3, 1, 7.0),
    ]
    assert 0 < steps[0].model_tokens == steps[1].model_tokens < toy.result(asked).usage.model_tokens[BASE]
    assert all(isinstance(event, Delta | Result) for event in toy.events[silent])


class Picky:
    """A reward that fails on texts that hold a character."""

    name = "picky"

    def __init__(self, bad: str) -> None:
        self.bad = bad

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        if any(self.bad in pair.answer for pair in pairs):
            raise ZeroDivisionError
        return [Judgement(float(len(pair.answer)), (0.0,)) for pair in pairs]


def test_under_lose_only_the_answer_that_a_reward_fails_on_loses(caplog: pytest.LogCaptureFixture) -> None:
    settings = EngineSettings(max_rows=64, guides={}, reward_errors="lose")
    decoding = {"strategy": "best_of_n", "n": 6, "reward": "picky"}
    good = Toy(TABLE, rewards={"picky": lambda text: 0.0}).run(PROMPT, SAMPLED, decoding=decoding)
    texts = [candidate.text for candidate in good.candidates]
    bad = next(c for c in texts[0] if not all(c in text for text in texts))
    toy = Toy(TABLE, settings=settings)
    toy.engine.scoring.rewards = {"picky": Picky(bad)}
    result = toy.run(PROMPT, SAMPLED, decoding=decoding)
    assert [math.isnan(each.reward or 0.0) for each in result.candidates] == [bad in text for text in texts]
    assert bad not in result.choices[0].text
    assert toy.stats.guide_errors == {"picky": sum(bad in text for text in texts)}
    assert "the answer loses" in caplog.text


def test_under_fail_the_request_ends_and_names_the_reward() -> None:
    toy = Toy(TABLE)
    toy.engine.scoring.rewards = {"picky": Picky("")}
    handle = toy.submit(PROMPT, SAMPLED, decoding={"strategy": "best_of_n", "n": 2, "reward": "picky"})
    toy.finish()
    end = toy.end(handle)
    assert isinstance(end, Failure)
    assert "picky" in str(end.error)


def test_tokens_that_a_reward_reads_are_spread_over_the_answers_of_its_batch() -> None:
    class Reading(FunctionReward):
        def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
            return [replace(each, tokens=15, cached=5) for each in super().judge(pairs)]

    toy = Toy(TABLE)
    toy.engine.scoring.rewards = {"read": Reading("read", len)}
    handles = [
        toy.submit(PROMPT, SAMPLED, decoding={"strategy": "best_of_n", "n": n, "reward": "read"}) for n in (1, 3)
    ]
    toy.finish()
    assert [toy.result(handle).usage.model_tokens["read"] for handle in handles] == [10, 30]
    assert toy.stats.model_tokens["read"] == 40


def test_measures_are_the_same_whether_or_not_the_pass_has_more_to_do() -> None:
    """Beside a traced request the batch goes the long way; the numbers are those of the base in float64."""
    found: list[list[Any]] = []

    def run(context: Context) -> Generator[Op, Any, Answer]:
        drafts = context.prompt.fork(2)
        yield Extend(drafts)
        found.append([each for draft in drafts for each in draft.measures])
        return Answer(drafts, drafts)

    alone, beside = Toy(TABLE), Toy(TABLE)
    play(alone, run, measured=True)
    beside.submit(PROMPT, SAMPLED, decoding={"trace": "tokens"})
    handle = play(beside, run, measured=True)
    for toy in (alone, beside):
        toy.finish()
    short, long = found
    for field in ("logprob", "base_logprob", "kl", "base_entropy"):
        assert [getattr(each, field) for each in short] == pytest.approx(
            [getattr(each, field) for each in long], abs=1e-5
        )
    answer = beside.result(handle).choices[0].token_ids
    assert [each.base_logprob for each in short[:8]] == pytest.approx(logprobs(TABLE, answer), abs=1e-5)
    entropies = [entropy([*PROMPT, *answer[:at]]) for at in range(8)]
    assert [each.base_entropy for each in short[:8]] == pytest.approx(entropies, abs=1e-5)


def test_a_token_that_a_program_has_chosen_counts_as_certain() -> None:
    def run(context: Context) -> Generator[Op, Any, Answer]:
        (draft,) = context.prompt.fork(1)
        while draft.finish is None:
            (proposal,) = yield Propose([draft], 3)
            yield Draw([draft], [{list(proposal)[-1]: 0.0}])
        return Answer([draft], [draft])

    choice = told(Toy(TABLE), run).choices[0]
    known = sum(logprobs(TABLE, choice.token_ids))
    assert choice.steering is not None
    assert choice.steering.logprob_steered == 0.0
    assert choice.steering.kl == pytest.approx(-known, abs=1e-4)
    assert choice.steering.intervention_rate == 1.0
    assert choice.steering.branching_factor == 1.0
    entropies = [entropy([*PROMPT, *choice.token_ids[:at]]) for at in range(8)]
    assert choice.steering.branching_factor_base == pytest.approx(math.exp(np.mean(entropies)), rel=1e-5)


def test_of_an_answer_that_another_model_drafted_no_distance_to_the_base_is_told() -> None:
    """The base has not read those tokens; what their model thought of them is known to the program."""
    seen: list[Any] = []

    def run(context: Context) -> Generator[Op, Any, Answer]:
        (draft,) = context.voiced(context.prompt, 1, "other")
        yield Extend([draft], max_tokens=3)
        seen.extend(draft.measures)
        (mine,) = context.steered(draft, 1)
        yield Extend([mine])
        return Answer([mine], [mine])

    toy = Toy(TABLE)
    toy.add_lm("other", OTHER)
    toy.add_lm("arm", random_table(VOCAB, scale=3.0))
    steer = {"strategy": "genarm", "arm": "arm", "alpha": 0.5}
    choice = told(toy, run, decoding=steer, calls=["other"], measured=True).choices[0]
    assert choice.steering is not None
    assert choice.steering.tokens == 8
    assert choice.steering.kl is None
    assert choice.steering.intervention_rate is None
    assert choice.steering.branching_factor is not None, "the other model's own distributions are known"
    assert choice.steering.branching_factor_base is None
    assert [each.base_logprob for each in seen] == pytest.approx(logprobs(OTHER, choice.token_ids[:3]), abs=1e-5)
