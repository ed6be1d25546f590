"""The splitter of streams under any tokens and stop strings, and the merging of what a slow reader has not read."""

import asyncio
from functools import cache

from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy import byte_tokenizer

from trimtab.engine.results import Delta, Failure, Result, TokenLogprob, Usage
from trimtab.engine.vocabulary import TextStream, Vocabulary
from trimtab.server.bridge import Exchange

EOS = 256
PIECES = ("a", "b", "ab", "aab", "ba", "é", "🙂", "a🙂", "\n\n", " ", "\ufffd")

TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
STOPS = st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join), max_size=4).map(tuple)
BYTES = st.one_of(TEXTS.map(str.encode), st.binary(max_size=24))


@cache
def vocabulary() -> Vocabulary:
    return Long(byte_tokenizer())


class Long(Vocabulary):
    """The byte tokens, and after them one token for each of PIECES and for each byte that ends one and begins one."""

    MORE = (*(piece.encode() for piece in PIECES), b"a\xf0\x9f", b"\x99\x82ab", b"\xa9a\xc3")

    def piece(self, previous: int | None, token_id: int) -> bytes:
        return self.MORE[token_id - EOS - 1] if token_id > EOS else super().piece(previous, token_id)

    def token_bytes(self, token_id: int) -> bytes:
        return self.MORE[token_id - EOS - 1] if token_id > EOS else super().token_bytes(token_id)


def spelled(raw: bytes) -> list[int]:
    """A token per byte."""
    ids = {vocabulary().token_bytes(id_): id_ for id_ in range(EOS)}
    return [ids[bytes([byte])] for byte in raw]


BA = EOS + 1 + PIECES.index("ba")
SPELLED = BYTES.map(spelled)
TOKENS = st.lists(st.one_of(SPELLED, st.lists(st.integers(EOS, EOS + len(Long.MORE)), max_size=6)), max_size=4).map(
    lambda parts: [id_ for part in parts for id_ in part]
)


def stream(stop: tuple[str, ...] = (), include: bool = False, skip: bool = True) -> TextStream:
    return TextStream(vocabulary(), stop=stop, include_stop=include, skip_special=skip)


def cut(text: str, stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """The text up to the stop string that is complete first, the longest of those that end together."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            longest = max(done, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def decoded(ids: list[int], skip: bool) -> str:
    """The text of the ids, by Python's own decoder."""
    raw = b"".join(vocabulary().token_bytes(id_) for id_ in ids if not (skip and id_ == EOS))
    return raw.decode("utf-8", "replace")


@settings(max_examples=400, deadline=None, derandomize=True)
@given(TOKENS, STOPS, st.booleans(), st.booleans())
@example([*spelled(b"a"), BA], ("aba", "b"), False, True)  # the one that begins first is not complete first
@example([*spelled(b"a"), BA], ("ba", "a"), False, True)
def test_pieces_concatenate_to_the_text_up_to_the_first_stop(
    ids: list[int], stops: tuple[str, ...], include: bool, skip: bool
) -> None:
    splitter = stream(stops, include, skip)
    pieces = [splitter.push(id_) for id_ in ids]
    pieces.append(splitter.flush())
    wanted, stopped = cut(decoded(ids, skip), stops, include)
    assert "".join(pieces) == splitter.text == wanted
    assert splitter.stopped == stopped


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS, STOPS)
def test_every_piece_is_whole_characters_and_little_is_held_back(text: str, stops: tuple[str, ...]) -> None:
    splitter = stream(stops)
    longest = max(map(len, stops), default=1)
    sent, raw = "", text.encode()
    for at, id_ in enumerate(spelled(raw), 1):
        sent += splitter.push(id_)
        whole = raw[:at].decode("utf-8", "ignore")
        wanted, stopped = cut(whole, stops, include=False)
        assert wanted.startswith(sent)
        if stopped is None:
            assert len(whole) - len(sent) < longest  # what is held may begin a stop string, and is no whole one
        else:
            assert sent == wanted


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TOKENS, STOPS, st.booleans(), st.data())
def test_a_fork_and_a_restart_go_on_like_the_stream_itself(
    ids: list[int], stops: tuple[str, ...], include: bool, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(ids)))
    other = data.draw(SPELLED)
    one = stream(stops, include)
    for id_ in ids[:at]:
        one.push(id_)
    fork, fresh = one.fork(), one.restart(ids[:at])
    aside = one.fork()
    for id_ in other:  # what one fork takes, the others do not see
        aside.push(id_)
    ends = [[each.push(id_) for id_ in ids[at:]] + [each.flush()] for each in (one, fork, fresh)]
    assert ends[0] == ends[1] == ends[2]
    assert one.text == fork.text == fresh.text
    assert one.stopped == fork.stopped == fresh.stopped


def delta(choice: int, number: int, text: str, told: bool) -> Delta:
    return Delta(choice, text, (number,), (TokenLogprob(number, -1.0),) if told else None)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), TEXTS), max_size=30),
    st.lists(st.booleans(), min_size=30, max_size=30),
    st.booleans(),
)
def test_a_reader_gets_everything_however_seldom_it_reads(
    events: list[tuple[int, int, str]], reads: list[bool], told: bool
) -> None:
    """Two prompts of two choices: the deltas of every choice come together, in order and once."""
    got: dict[int, list[Delta]] = {index: [] for index in range(4)}
    most = 0

    async def play() -> list[int]:
        nonlocal most
        exchange = Exchange(None, (None, None), 2, {})  # type: ignore[arg-type]
        tickets = [Ticketed(exchange, part) for part in (0, 1)]

        async def read() -> list[int]:
            nonlocal most
            news = await exchange.read()
            most = max(most, len(news.deltas))
            for index, each in news.deltas.items():
                got[index].append(each)
            return news.ended

        for number, ((part, choice, text), now) in enumerate(zip(events, reads, strict=False)):
            exchange.push(tickets[part], delta(choice, number, text, told), 0.0)  # type: ignore[arg-type]
            if now:
                await read()
        usage = Usage(0, 0, 0, {}, {}, {}, 0)
        for part in (0, 1):
            exchange.push(tickets[part], Result((), (), usage, 1, "finished"), 0.0)  # type: ignore[arg-type]
            late = Failure(RuntimeError("after the end"))
            exchange.push(tickets[part], late, 0.0)  # type: ignore[arg-type]
        return await read()

    assert sorted(asyncio.run(play())) == [0, 1]
    assert most <= 4
    for index in range(4):
        mine = [(n, text) for n, (part, choice, text) in enumerate(events) if part * 2 + choice == index]
        assert "".join(each.text for each in got[index]) == "".join(text for _, text in mine)
        assert [id_ for each in got[index] for id_ in each.token_ids] == [number for number, _ in mine]
        logprobs = [told.id for each in got[index] for told in each.logprobs or ()]
        assert logprobs == ([number for number, _ in mine] if told else [])


class Ticketed:
    """What an exchange knows a prompt by, without metrics."""

    def __init__(self, exchange: Exchange, part: int) -> None:
        self.exchange = exchange
        self.part = part
        self.timer = self
        self.span = None

    def observe(self, event: object, now: float) -> None:
        pass
