"""The tree of what a search wrote: against a dictionary, by hand, and under its limits."""

from array import array
from collections.abc import Callable, Generator, Sequence
from functools import cache
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Toy, random_table

from trimtab.engine import lineage
from trimtab.engine.lane import Lane
from trimtab.engine.lineage import Lineage, Trail
from trimtab.engine.plan import BASE, LanePlan, SteerPlan
from trimtab.engine.program import Answer, Context, Extend, Op, Score
from trimtab.engine.request import Request
from trimtab.engine.results import Result, Tree
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.sequence import Sequence as Line
from trimtab.engine.vocabulary import TextStream

VOCAB, PROMPT = 12, [1, 5, 2]
SAMPLED = SamplingParams(seed=3, max_tokens=8)
Run = Callable[[Context], Generator[Op, Any, Answer]]
Tokens = tuple[int, ...]


def ends(tree: Tree) -> list[Tokens]:
    """Of each node, the answer up to its end."""
    found: list[Tokens] = []
    for node in tree.nodes:
        found.append((() if node.parent is None else found[node.parent]) + node.token_ids)
    return found


def beginnings(answers: Sequence[Tokens]) -> set[Tokens]:
    return {answer[:at] for answer in answers for at in range(len(answer) + 1)}


@cache
def bare() -> Toy:
    return Toy(random_table(VOCAB))


def opening() -> Line:
    """An empty answer that is recorded."""
    toy = bare()
    plan = SteerPlan(SAMPLED, 0, frozenset())
    lane = Lane.of(LanePlan(BASE, BASE, array("q", PROMPT)), toy.base, None, b"")
    return Line([lane], len(PROMPT), 99, plan, TextStream(toy.vocabulary), count(), trail=Trail(Lineage()))


def closed(start: Line, choices: Sequence[Line], candidates: Sequence[Line]) -> Tree:
    assert start.trail is not None
    return start.trail.lineage.tree(start.family, choices, candidates)


def worth(line: Line) -> float:
    """Of any answer; of many the same."""
    return float(sum(line.answer) % 3)


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["fork", "grow", "assess", "score", "trim", "free"]), st.integers(0, 7), st.integers(0, 3)
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(ACTS, st.integers(0, 4))
def test_the_tree_is_that_of_a_dictionary(acts: list[tuple[str, int, int]], considered: int) -> None:
    start = opening()
    live, written = start.fork(2), list[Tokens]()
    fresh: dict[Line, tuple[Tokens, float]] = {}
    values: dict[Tokens, float] = {}
    rewards: dict[Tokens, float] = {}

    def noted(line: Line) -> None:
        tokens = tuple(line.answer)
        written.append(tokens)
        if line in fresh and fresh[line][0] == tokens:
            values[tokens] = fresh[line][1]
        if line.reward is not None:
            rewards[tokens] = line.reward

    for act, which, number in acts:
        if not live:
            break
        line = live[which % len(live)]
        assert line.trail is not None
        match act:
            case "fork":
                (fork,) = line.fork(1)
                live.append(fork)
                if line in fresh:
                    fresh[fork] = fresh[line]
            case "grow":
                line.trail.note(line)  # as an Extend begins
                noted(line)
                line.push(number)
                line.push(which % 2)
            case "assess" | "score":
                line.trail.note(line)
                noted(line)
                line.trail.scored = line.generated
                if act == "score":
                    line.reward = worth(line)
                else:
                    line.value, line.reward = worth(line), None
                    fresh[line] = tuple(line.answer), line.value
            case "trim":
                noted(line)
                line.trim(number * line.generated // 4)
                fresh.pop(line, None)
            case "free":
                noted(line)
                line.free()
                live.remove(line)
    candidates = live[:considered]
    choices = candidates[:1]
    for line in live:
        noted(line)
    tree = closed(start, choices, candidates)
    found = ends(tree)
    assert beginnings(found) == beginnings([*written, ()])
    own = [
        (node, tokens) for node, tokens in zip(tree.nodes, found, strict=True) if node.token_ids or node.parent is None
    ]
    assert {tokens: node.value for node, tokens in own if node.value is not None} == values
    told = {tokens: each.reward for each in candidates if (tokens := tuple(each.answer)) and each.reward is not None}
    assert {tokens: node.reward for node, tokens in own if node.reward is not None} == rewards | told
    on_the_way = beginnings([tuple(each.answer) for each in choices])
    kept = beginnings([tuple(each.answer) for each in candidates]) - on_the_way
    for node, tokens in own:
        assert node.fate == ("chosen" if tokens in on_the_way else "kept" if tokens in kept else "pruned"), tokens
    check(tree, candidates, choices)


def check(tree: Tree, candidates: Sequence[Line], choices: Sequence[Line]) -> None:
    """What holds of every tree: it is a radix tree, and every answer has an end of its own."""
    found = ends(tree)
    children: dict[int, list[int]] = {}
    for index, node in enumerate(tree.nodes):
        assert (node.parent is None) == (index == 0)
        if node.parent is not None:
            assert node.parent < index
            children.setdefault(node.parent, []).append(index)
    for parent, own in children.items():
        firsts = [tree.nodes[each].token_ids[0] for each in own if tree.nodes[each].token_ids]
        assert len(set(firsts)) == len(firsts)
        node = tree.nodes[parent]
        said = (node.value, node.reward, node.candidate, node.choice) != (None,) * 4
        assert parent == 0 or said or len(own) > 1, "this node could be one with its child"
    for name, answers in (("candidate", candidates), ("choice", choices)):
        told = {number: at for at, node in enumerate(tree.nodes) if (number := getattr(node, name)) is not None}
        assert sorted(told) == list(range(len(answers)))
        for number, at in told.items():
            assert found[at] == tuple(answers[number].answer)
            assert answers[number].reward in (None, tree.nodes[at].reward)


def test_a_value_that_is_older_than_the_tokens_is_not_told_of_them() -> None:
    start = opening()
    (line,) = start.fork(1)
    assert line.trail is not None
    line.push(1)
    line.value = 0.5
    line.trail.note(line)
    line.push(2)
    line.trail.note(line)
    line.push(3)
    line.trail.scored, line.value = line.generated, 0.5  # scored again, and worth the same
    tree = closed(start, [line], [line])
    told = {tokens: node.value for node, tokens in zip(tree.nodes, ends(tree), strict=True)}
    assert told == {(): None, (1,): 0.5, (1, 2, 3): 0.5}


def test_answers_of_the_same_tokens_have_an_end_each() -> None:
    start = opening()
    lines = start.fork(3)
    for line, tokens in zip(lines, ([1, 2], [1, 2], [1]), strict=True):
        for token in tokens:
            line.push(token)
    tree = closed(start, [lines[1]], lines)
    assert [(node.parent, node.token_ids, node.candidate, node.choice, node.fate) for node in tree.nodes] == [
        (None, (), None, None, "chosen"),
        (0, (1,), None, None, "chosen"),
        (1, (), 2, None, "kept"),
        (1, (2,), 1, 0, "chosen"),
        (3, (), 0, None, "kept"),
    ]


@pytest.mark.parametrize("limit", ["nodes", "tokens"])
def test_the_oldest_branches_go_first_and_answers_stay(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "NODES", 10 if limit == "nodes" else 10**6)
    monkeypatch.setattr(lineage, "TOKENS", 30 if limit == "tokens" else 10**6)
    start = opening()
    first, *others = start.fork(8)
    dropped = others[0]
    for index, line in enumerate((first, *others)):
        for token in (index, index, index):
            line.push(token)
        if line is not first and line is not others[-1]:
            line.free()
    waiting = others[-1]
    waiting.value = 0.5
    assert waiting.trail is not None
    waiting.trail.note(waiting)
    (copy,) = waiting.fork(1)
    copy.free()
    (root,) = first.fork(1)
    for token in range(100):
        (branch,) = root.fork(1)
        branch.push(token % VOCAB)
        branch.push(token % 7)
        if token % 2:
            branch.free()
        else:
            branch.trim(root.generated)  # lives on, and what it had written does not
        root.push(token % 5)
    waiting.push(9)
    tree = closed(start, [root], [root, dropped, waiting])
    found = dict(zip(ends(tree), tree.nodes, strict=True))
    assert found[tuple(waiting.answer[:3])].value == 0.5, "it lived on"
    assert tuple(dropped.answer) in found, "a candidate"
    assert not {(index, index, index) for index in range(2, 7)} & found.keys()
    assert tuple(root.answer) in found
    assert len(tree.nodes) < 120 if limit == "nodes" else sum(len(node.token_ids) for node in tree.nodes) < 145
    assert tree.omitted > 20
    check(tree, [root, dropped, waiting], [root])


def test_a_fork_of_what_was_left_out_begins_at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "NODES", 1)
    start = opening()
    dropped, other = start.fork(2)
    for line, tokens in ((dropped, [1, 2]), (other, [3])):
        for token in tokens:
            line.push(token)
        line.free()
    (again,) = dropped.fork(1)
    again.push(4)
    again.trim(1)
    tree = closed(start, [again], [again])
    assert ends(tree) == [(), (1,)]
    assert tree.nodes[1].fate == "chosen"


def test_texts_of_another_vocabulary_are_left_out() -> None:
    start = opening()
    lane = Lane.of(LanePlan("other", BASE, array("q", PROMPT)), bare().base, None, b"")
    assert start.trail is not None
    trail = Trail(start.trail.lineage)
    other = Line([lane], len(PROMPT), 99, start.plan, start.text.fork(), count(), trail=trail, family=start.family)
    other.push(1)
    other.trim(0)
    other.push(2)
    assert len(closed(start, [], []).nodes) == 1


class Script:
    """A program that a test writes down."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def rows(self, choices: int) -> int:
        return 4

    def interrupted(self, context: Context, reason: str) -> Generator[Op, Any, Answer]:
        yield Score([], "last")
        raise AssertionError


def told(run: Run, *, tree: bool = True, discreet: bool = False, pages: int = 4096) -> Result:
    """The result of a program on a toy."""
    toy = Toy(random_table(VOCAB), rewards={"last": lambda text: float(ord(text[-1]))}, pages=pages)
    handle = object()
    toy.events[handle] = []
    toy.engine.submit(
        Request(
            handle=handle,
            deliver=toy._deliver,
            prompt=array("q", PROMPT),
            messages=(),
            program=Script(run),
            plan=SteerPlan(SAMPLED, 3, frozenset()),
            text=TextStream(toy.vocabulary),
            choices=1,
            rows=4,
            max_tokens=8,
            tree=tree,
            discreet=discreet,
        )
    )
    toy.finish()
    return toy.result(handle)


def hand_made(seen: SimpleNamespace) -> Run:
    """Two beginnings, one of which is given up; a rewritten end; a look ahead."""

    def run(context: Context) -> Generator[Op, Any, Answer]:
        one, other = context.prompt.fork(2)
        yield Extend([one, other], 3)
        (one.reward,) = yield Score([one], "last")
        one.value, other.value = 0.25, -1.0
        seen.lost = tuple(other.answer)
        other.free()
        (again,) = one.fork(1)
        yield Extend([one], 2)
        seen.first = tuple(one.answer)
        one.trim(4)
        one.push(11)
        (look,) = context.branch(one, [3])
        yield Extend([look], 2)
        look.free()
        yield Extend([one, again])
        seen.one, seen.again = tuple(one.answer), tuple(again.answer)
        (one.reward,) = yield Score([one], "last")
        return Answer([one], [again, one])

    return run


def test_a_search_by_hand() -> None:
    seen = SimpleNamespace()
    result = told(hand_made(seen))
    tree = result.tree
    assert tree is not None
    assert tree.omitted == 0
    found = dict(zip(ends(tree), tree.nodes, strict=True))
    assert beginnings(list(found)) == beginnings([seen.lost, seen.first, seen.one, seen.again])
    assert found[seen.lost].fate == "pruned"
    assert found[seen.lost].value == -1.0
    assert found[seen.first].fate == "pruned"
    assert found[seen.one[:3]].value == 0.25
    assert found[seen.one[:3]].fate == "chosen"
    assert found[seen.one].value is None
    assert (found[seen.one].candidate, found[seen.one].choice) == (1, 0)
    assert found[seen.one].reward == result.candidates[1].reward
    assert (found[seen.again].candidate, found[seen.again].choice, found[seen.again].fate) == (0, None, "kept")
    assert found[seen.again].reward is None


def test_it_is_told_where_it_is_asked_for_and_may_be() -> None:
    seen = SimpleNamespace()
    traced, plain = told(hand_made(seen)), told(hand_made(seen), tree=False)
    assert plain.tree is None
    assert told(hand_made(seen), discreet=True).tree is None
    assert (plain.choices, plain.candidates) == (traced.choices, traced.candidates)
    assert told(hand_made(seen)).tree == traced.tree


def test_a_sequence_that_gave_its_pages_back_is_where_it_was() -> None:
    seen = SimpleNamespace()

    def released(context: Context) -> Generator[Op, Any, Answer]:
        run = hand_made(seen)(context)
        reply = None
        while True:
            for each in context.prompt.family:
                each.release()
            try:
                reply = yield run.send(reply)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]

    assert told(released).tree == told(hand_made(seen)).tree
