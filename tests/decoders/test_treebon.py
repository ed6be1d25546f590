"""TreeBoN against its restatement, and what it is at its limits."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from replay import Path, Replay, letter, noise
from toy import Toy, random_table

from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Progress
from trimtab.engine.sampling import SamplingParams

VOCAB, EOS, PROMPT = 12, 7, [1, 5, 2, 9, 3]
TABLE = random_table(VOCAB)


def dpo(prefix: Sequence[int]) -> np.ndarray:
    return random_table(VOCAB)([*prefix, 99])


def ref(prefix: Sequence[int]) -> np.ndarray:
    return random_table(VOCAB)([*prefix, 98])


def value(text: str) -> float:
    return noise(text + "!")


def toy(reward: Callable[[str], float] = noise, eos: int | None = EOS) -> Toy:
    engine = Toy(TABLE, rewards={"reward": reward, "value": value}, eos=eos)
    engine.add_lm("dpo", dpo)
    engine.add_lm("ref", ref)
    return engine


def decoding(**fields: object) -> dict[str, object]:
    return {"strategy": "treebon", "reward": "reward", **fields}


def restated(
    replay: Replay, n: int, layers: int, children: int, segment: int, weigh: Callable[[Path], float]
) -> tuple[list[Path], dict[str, int]]:
    """The answers among which the reward picks, and the report."""
    drafts, told = replay.begin(n), dict.fromkeys(("rounds", "expanded", "kept", "finished_early"), 0)
    for layer in range(1, layers + 1):
        grown = [each for each in drafts if not each.ended]
        for each in grown:
            replay.extend(each, None if layer == layers else segment)
            each.value = weigh(each)
        parents = drafts if layer == layers else sorted(drafts, key=lambda each: -each.value)[: n // children]
        over = all(each.ended for each in parents)
        if over:
            parents = [each for each in drafts if each.ended]
        told["rounds"] += 1
        told["expanded"] += len(grown)
        told["kept"] += len(parents)
        if over:
            return parents, told
        told["finished_early"] += sum(each.ended for each in grown)
        drafts = [each for one in parents for each in ([one] if one.ended else [one, *replay.fork(one, children - 1)])]
    raise AssertionError("the last layer ends every draft")


def implicit(replay: Replay, other: Callable[[Sequence[int]], np.ndarray]) -> Callable[[Path], float]:
    """sum_k (1 / k) (log pi_dpo(y_k) - log pi_ref(y_k)), k from 1, over the whole answer."""

    def weigh(path: Path) -> float:
        pairs = zip(replay.logprobs(dpo, path), replay.logprobs(other, path), strict=True)
        return sum((up - down) / k for k, (up, down) in enumerate(pairs, start=1))

    return weigh


@pytest.mark.parametrize(
    ("n", "layers", "children", "length", "segment"),
    [(8, 5, 4, 11, None), (6, 3, 2, 10, 2), (4, 4, 4, 3, None), (6, 3, 3, 9, 5)],
)
@pytest.mark.parametrize("way", ["ref", "base", "value"])
def test_drafts_branch_as_the_paper_has_it(
    way: str, n: int, layers: int, children: int, length: int, segment: int | None
) -> None:
    fields: dict[str, object] = {"n": n, "layers": layers, "children": children, "segment": segment}
    fields |= {"value": "value"} if way == "value" else {"dpo": "dpo", "ref": way}
    early = 0
    for seed in range(5):
        engine, replay = toy(), Replay(TABLE, PROMPT, seed, length, EOS)
        result = engine.run(PROMPT, SamplingParams(seed=seed, max_tokens=length), decoding=decoding(**fields))
        weigh = implicit(replay, TABLE if way == "base" else ref)
        if way == "value":
            weigh = lambda path, replay=replay: replay.judge(path, value)  # type: ignore[misc]  # noqa: E731
        pool, told = restated(replay, n, layers, children, segment or max(1, length // layers), weigh)
        assert result.choices[0].token_ids == max(pool, key=replay.judge).answer
        assert [each.reward for each in result.candidates] == [replay.judge(each) for each in pool]
        assert result.report == told
        early += told["finished_early"]
    assert early, "no seed ends a draft before the search does"


@pytest.mark.parametrize("fields", [{"layers": 1}, {"layers": 5, "children": 1}])
def test_a_tree_that_drops_nothing_is_best_of_n(fields: dict[str, object]) -> None:
    for seed in range(5):
        engine, sampling = toy(), SamplingParams(seed=seed, max_tokens=8)
        searched = engine.run(PROMPT, sampling, n=2, decoding=decoding(n=8, dpo="dpo", **fields))
        best = engine.run(PROMPT, sampling, n=2, decoding={"strategy": "best_of_n", "n": 8, "reward": "reward"})
        assert [each.token_ids for each in searched.choices] == [each.token_ids for each in best.choices]
        assert [each.token_ids for each in searched.choices] != []
        assert {each.text for each in searched.candidates} == {each.text for each in best.candidates}


def test_everything_may_end_in_the_first_layer() -> None:
    surely = np.where(np.arange(VOCAB) == EOS, 50.0, 0.0)
    engine = Toy(lambda prefix: surely, rewards={"reward": noise, "value": value}, eos=EOS)
    result = engine.run(PROMPT, SamplingParams(seed=1, max_tokens=8), decoding=decoding(value="value"))
    assert result.choices[0].token_ids == (EOS,)
    assert result.report == {"rounds": 1, "expanded": 8, "kept": 8, "finished_early": 0}


def test_a_stop_string_ends_a_draft() -> None:
    inside = 0
    for seed in range(5):
        sampling = SamplingParams(seed=seed, max_tokens=12, stop=(letter(3),))
        scored = decoding(n=4, layers=3, children=2, segment=3, value="value")
        result = toy(eos=None).run(PROMPT, sampling, decoding=scored)
        replay = Replay(TABLE, PROMPT, seed, 12, stop=letter(3))
        pool, _ = restated(replay, 4, 3, 2, 3, lambda path, replay=replay: replay.judge(path, value))  # type: ignore[misc]
        best = max(pool, key=replay.judge)
        assert result.choices[0].token_ids == best.answer
        inside += len(best.answer) % 3 != 0
    assert inside, "no seed stops inside a segment"


def test_every_token_is_read_once_and_what_is_not_kept_is_freed() -> None:
    engine = toy(eos=None)
    scored = decoding(n=8, layers=3, children=2, dpo="dpo")
    handle = engine.submit(PROMPT, SamplingParams(seed=6, max_tokens=12), decoding=scored, progress=True)
    engine.finish()
    result = engine.result(handle)
    assert result.report["expanded"] == 24
    assert engine.runner.prefilled == len(PROMPT) - 1
    assert result.usage.model_tokens["base"] == len(PROMPT) - 1 + 24 * 4
    assert result.usage.model_tokens["dpo"] <= len(PROMPT) + 16 * 4
    held = [event.candidates for event in engine.events[handle] if isinstance(event, Progress)]
    assert max(held) == 8, "what is not kept gives its pages back"


def test_what_all_parents_begin_with_is_sent_as_soon_as_it_is_known() -> None:
    early = 0
    for seed in range(5):
        engine = toy(eos=None)
        scored = decoding(n=4, layers=4, children=4, dpo="dpo")
        handle = engine.submit(PROMPT, SamplingParams(seed=seed, max_tokens=12), decoding=scored)
        engine.finish()
        sent = [delta.text for delta in engine.deltas(handle)]
        assert "".join(sent) == engine.result(handle).choices[0].text
        early += len(sent) == 4
    assert early == 5, "one parent goes on from each layer: its text is certain"


def test_a_reward_that_is_enough_ends_the_search() -> None:
    stopped = 0
    for seed in range(10):
        sampling = SamplingParams(seed=seed, max_tokens=12)
        result = toy().run(PROMPT, sampling, decoding=decoding(dpo="dpo", budget={"reward_at_least": 0.7}))
        if result.stopped_by == "reward_at_least":
            assert noise(result.choices[0].text) >= 0.7
            stopped += 1
        else:
            assert result.choices == toy().run(PROMPT, sampling, decoding=decoding(dpo="dpo")).choices
    assert stopped


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "give one of dpo and value"),
        ({"dpo": "dpo", "value": "value"}, "give one of dpo and value"),
        ({"dpo": "dpo", "n": 6}, "make n a multiple of children"),
        ({"dpo": "dpo", "n": 260}, "less than or equal to 256"),
    ],
)
def test_wrong_fields_name_the_fix(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        DecodingSpec.parse(decoding(**wrong))


def test_a_missing_model_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        toy().submit(PROMPT, decoding=decoding(dpo="absent"))
    assert caught.value.param == "decoding.dpo"


def test_choices_are_found_among_as_many_answers_as_there_are_parents() -> None:
    spec = DecodingSpec.parse(decoding(dpo="dpo"))
    spec.check(choices=2, rewards={"reward"})
    with pytest.raises(InvalidRequest, match="lower n"):
        spec.check(choices=3, rewards={"reward"})
