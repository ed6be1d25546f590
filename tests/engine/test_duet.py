"""Two scripted voices over real tokenizers, and a loop that plays the engine."""

import math
import random
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from toy import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from trimtab.engine.duet import Duet, Look, Spoken
from trimtab.engine.plan import GatePlan
from trimtab.engine.vocabulary import Vocabulary

TEXTS = {
    "accents": "Der Bär trägt Äpfel über die Straße; ça va, señor? e\u0301te\u0301 fini.",
    "emoji": "so 👩‍👩‍👧 and 🇫🇷, \U0001f9ff🎉 party 🎉🎉 time",
    "ideographs": "你好世界。これはテスト ok か\u3099 한국어 말 done",
    "code": "def f(x):\n\tif x:\n        return {'a': [x, 1.5e-3]}  # ok\n\n\n    pass\r\n",
    "spaces": "  leading,   inside and\n\nbetween  trailing \n ",
}
CORPUS = [*TEXTS.values(), "the quick brown fox jumps over the lazy dog and the cat " * 3]


@cache
def bytewise() -> Vocabulary:
    return Vocabulary(byte_tokenizer())


@cache
def bpe(alone: bool = True) -> Vocabulary:
    """Byte-level; ideographs stand alone, so that no token spans two words, or do not."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"[\u3041-\u30ff\u4e00-\u9fff\uac00-\ud7a3]"), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level] if alone else [level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>", "<think>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*CORPUS, "x 你好" * 9], trainer)
    return Vocabulary(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", additional_special_tokens=["<think>"])
    )


@cache
def sentencepiece() -> Vocabulary:
    """▁ for spaces, bytes for what has no piece, and a dummy space in front."""
    pieces = ["<unk>", "<think>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁", *"abcdefghijklmnoprstuvxy", "é", "ä", "en", "th", "the", "▁the", "▁d", "de", "▁de", "▁▁", "▁▁▁▁"]
    merges = [("e", "n"), ("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "d"), ("d", "e"), ("▁", "de"), ("▁", "▁")]
    merges += [("▁▁", "▁▁")]
    model = models.BPE(
        {piece: id_ for id_, piece in enumerate(pieces + words)}, merges, unk_token="<unk>", byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Vocabulary(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", additional_special_tokens=["<think>"]
        )
    )


def eos(vocabulary: Vocabulary) -> int:
    return int(vocabulary.tokenizer.eos_token_id)


def token(vocabulary: Vocabulary, spelled: bytes) -> int:
    return next(id_ for id_ in range(vocabulary.size) if vocabulary.token_bytes(id_) == spelled)


@dataclass
class Voice:
    """Says `text[n:]` after any text of n characters, with a certainty that depends on its bytes alone."""

    vocabulary: Vocabulary
    text: str
    certainty: Callable[[int], float] = lambda _: 0.5
    _memo: dict[bytes, int] = field(default_factory=dict)

    def next(self, said: bytes) -> int:
        if said not in self._memo:
            self._memo[said] = self._next(said)
        return self._memo[said]

    def _next(self, said: bytes) -> int:
        done = said.decode("utf-8", "ignore")
        begun = said[len(done.encode()) :]  # of the character that is being written
        rest = self.text[len(done) :].encode()
        if begun:
            if len(begun) >= len(rest) or not rest.startswith(begun):
                return 0  # inside a character of the other voice: nobody may ask
            return token(self.vocabulary, rest[len(begun) : len(begun) + 1])
        word = WORD.match(rest.decode())
        return self.vocabulary.continuation(word[0])[0] if word else eos(self.vocabulary)


PROMPT = array("q", [7, 7])


@dataclass
class Stage:
    """The engine's side of one duet, as its docstring tells it; checks what must hold after each call."""

    plan: GatePlan
    base: Voice
    guide: Voice
    again: bool = True
    """the base reads its last accepted token again before a draft"""
    context: int = 10_000
    answer: list[Spoken] = field(default_factory=list)
    guide_runs: int = 0

    def __post_init__(self) -> None:
        prompt = PROMPT[:]
        self.duet = Duet(
            self.plan,
            self.base.vocabulary,
            self.guide.vocabulary,
            base_eos=frozenset({eos(self.base.vocabulary)}),
            guide_eos=frozenset({eos(self.guide.vocabulary)}),
            guide_prompt=prompt,
            guide_context=self.context,
        )
        prompt.pop()  # the lane's tokens are its own

    @property
    def said(self) -> bytes:
        return self.spelled([token.id for token in self.answer])

    @property
    def text(self) -> str:
        return self.said.decode()

    @property
    def sources(self) -> list[str]:
        return [token.source for token in self.answer]

    def spelled(self, ids: list[int]) -> bytes:
        vocabulary = self.base.vocabulary
        return b"".join(vocabulary.token_bytes(id_) for id_ in ids if id_ not in vocabulary.special_ids)

    def run(self, most: int = 3000) -> "Stage":
        for _ in range(most):
            if self.duet.finish or (self.answer and self.answer[-1].id == eos(self.base.vocabulary)):
                return self
            self.step()
        raise AssertionError("no end")

    def step(self) -> None:
        duet = self.duet
        if duet.speaker == "guide":
            self.guide_runs += 1
            assert duet.take(self.guide.next(self.heard())) == []
            return
        read = [0, *duet.draft] if self.again or not duet.draft else duet.draft
        first = len(read) - len(duet.draft)
        ids = list(duet.draft)
        rows = []
        for n in range(len(read)):
            said = self.said + self.spelled(ids[: n + 1 - first])
            following = read[n + 1] if n + 1 < len(read) else None
            certainty = self.base.certainty(len(said))
            logprob = None if following is None else self.logprob(said, following)
            rows.append(Look(self.base.next(said), certainty, logprob))
        before = self.said
        verdict = duet.look(rows)
        assert [token.id for token in verdict.accepted] == ids[: len(verdict.accepted)]
        self.answer += verdict.accepted
        if verdict.draw is not None:
            assert before + self.spelled(ids[: verdict.draw + 1 - first]) == self.said
            self.answer += duet.take(self.base.next(self.said))
        assert duet.nudged + duet.spoken == len(self.answer)

    def logprob(self, said: bytes, token: int) -> float:
        return 0.0 if token == self.base.next(said) else math.log(max(self.base.certainty(len(said)), 1e-9))

    def heard(self) -> bytes:
        """The answer as the guide's lane holds it."""
        tokens, vocabulary = self.duet.guide_tokens, self.guide.vocabulary
        assert tokens[: len(PROMPT)] == PROMPT
        ids = [id_ for id_ in tokens[len(PROMPT) :] if id_ not in vocabulary.special_ids]
        heard = b"".join(vocabulary.token_bytes(id_) for id_ in ids)
        if vocabulary.drops_first_space and not self.base.vocabulary.drops_first_space:
            heard = heard.removeprefix(b" ")
        assert heard.startswith(self.said)
        return heard


def _whole(said: bytes) -> bool:
    return said.decode("utf-8", "ignore").encode() == said


def nudging(gamma: float, draft: int = 16) -> GatePlan:
    return GatePlan("nudging", 0, draft, gamma=gamma)


WORD = re.compile(
    r"\s*(?:[\u3041-\u30ff\u4e00-\u9fff\uac00-\ud7a3]\u3099?|[^\s\u3041-\u30ff\u4e00-\u9fff\uac00-\ud7a3]+)|\s+"
)


def nudged(base: Voice, guide: Voice, gamma: float) -> str:
    """The rule on text: whole drafts, no lanes, no laziness."""
    text = ""
    while True:
        draft = guide.text[len(text) :]
        for n, word in enumerate(WORD.findall(draft)):
            if n:
                top = base.next(text.encode())
                ends = top == eos(base.vocabulary)
                agrees = word.encode().startswith(base.vocabulary.token_bytes(top))
                if (base.certainty(len(text.encode())) >= gamma and (gamma == 0 or not ends)) or (agrees and not ends):
                    break
            text += word
        else:
            return text
        while True:
            spoken = text.encode()
            while not spoken[len(text.encode()) :] or not _whole(spoken):
                top = base.next(spoken)
                if top == eos(base.vocabulary):
                    break
                spoken += base.vocabulary.token_bytes(top)
            text = spoken.decode()
            ends = base.next(spoken) == eos(base.vocabulary)
            if gamma == 0 and ends:
                return text
            if base.certainty(len(spoken)) < gamma or ends:
                break


def scripts(kind: str, seed: int) -> tuple[str, str]:
    """Two texts of one kind that agree here and there."""
    draw = random.Random(f"{kind} {seed}")
    words = WORD.findall(TEXTS[kind])
    base, guide = ("".join(w if draw.random() < 0.7 else draw.choice(words) for w in words) for _ in range(2))
    return base, guide


def certainty(seed: int) -> Callable[[int], float]:
    return lambda n: random.Random(f"{seed} {n}").random()


PAIRS = [(bytewise, bpe), (bpe, bytewise), (bpe, sentencepiece), (sentencepiece, bpe), (sentencepiece, sentencepiece)]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize(("make_base", "make_guide"), PAIRS)
def test_the_answer_is_that_of_the_rule_on_text(
    make_base: Callable[[], Vocabulary], make_guide: Callable[[], Vocabulary], kind: str
) -> None:
    for seed, (gamma, draft) in enumerate(((0.0, 4), (0.3, 1), (0.6, 16), (0.9, 3), (1.0, 16))):
        said, drafted = scripts(kind, seed)
        base, guide = Voice(make_base(), said, certainty(seed)), Voice(make_guide(), drafted)
        stage = Stage(nudging(gamma, draft), base, guide).run()
        assert stage.text == nudged(base, guide, gamma)
        Stage(nudging(gamma, draft), base, guide, again=False).run()  # checks bytes and characters as it goes


def test_with_gamma_zero_the_base_is_alone_after_the_first_word() -> None:
    base = Voice(bpe(), "the lazy cat and the dog", lambda _: 0.0)
    stage = Stage(nudging(0.0), base, Voice(bytewise(), "quick fox")).run()
    assert stage.text == "quick" + base.text[5:]
    assert stage.answer[-1] == Spoken(eos(bpe()), "base", None)
    assert stage.duet.finish is None  # the engine sees the token
    assert stage.guide_runs == len("quick ")


def test_the_guide_ends_the_answer() -> None:
    sure = Voice(bpe(), "the", lambda _: 1.0)  # wants to end after three characters
    stage = Stage(nudging(0.4), sure, Voice(bpe(), "cat and dog")).run()
    assert (stage.text, stage.duet.finish) == ("cat and dog", "stop")
    assert set(stage.sources) == {"nudge"}
    silent = Stage(nudging(0.4), sure, Voice(bpe(), "")).run()
    assert (silent.text, silent.duet.finish, silent.guide_runs) == ("", "stop", 1)


def test_a_base_that_draws_its_end_asks_the_guide() -> None:
    letters = bytewise()
    stage = Stage(nudging(0.4), Voice(letters, "", lambda _: 0.0), Voice(letters, "one two three"))
    while stage.duet.speaker == "guide":
        stage.step()
    stage.answer += stage.duet.look([Look(eos(letters), 1.0, None)] * 4).accepted  # to end is not its business
    assert (stage.text, stage.duet.speaker) == ("one", "guide")
    while stage.duet.speaker == "guide":
        stage.step()
    verdict = stage.duet.look([Look(token(letters, b" "), 0.1, None)] * (len(stage.duet.draft) + 1))
    assert (verdict.accepted, verdict.draw) == ([], 0)  # agrees with the word whose start it had not seen
    assert stage.duet.take(eos(letters)) == []
    stage.run()
    assert (stage.text, stage.duet.finish, stage.duet.spoken) == ("one two three", "stop", 0)


def test_drafts_double_while_the_base_is_silent_and_start_over_when_it_has_spoken() -> None:
    base = Voice(bytewise(), "." * 80, lambda n: 0.9 if n in (35, 36) else 0.0)
    stage = Stage(nudging(0.5, draft=64), base, Voice(bytewise(), "abc " * 20))
    drafts: list[bytes] = []
    while len(drafts) < 5:
        stage.step()
        if stage.duet.draft:
            drafts.append(stage.spelled(stage.duet.draft))
    assert drafts == [b"abc", b" abc" * 2, b" abc" * 4, b" abc" * 8, b"bc"]
    assert stage.text == ("abc " * 9)[:35] + ".."
    assert stage.duet.guide_tokens == PROMPT + array("q", bytewise().continuation(stage.text + "bc "))


def test_what_the_base_has_read_is_reported() -> None:
    base, guide = Voice(bytewise(), "aXcXeX", lambda n: (n + 1) / 10), Voice(bytewise(), "abc de")
    stage = Stage(nudging(1.0, draft=3), base, guide).run()
    expected = [0.0, math.log(0.2), 0.0, math.log(0.4), math.log(0.5), math.log(0.6)]
    assert [token.logprob for token in stage.answer] == expected
    unread = Stage(nudging(1.0, draft=3), base, guide, again=False).run()
    assert [token.logprob for token in unread.answer] == [None, *expected[1:3], None, *expected[4:]]


def test_a_word_start_inside_a_token_of_the_base_is_passed_by() -> None:
    guide = Voice(bytewise(), "x 你好 ok fine")
    sure = partial(lambda at, n: 1.0 if n == at else 0.0, len("x 你".encode()))
    apart = Stage(nudging(0.5), Voice(bpe(), "." * 9, sure), guide).run()
    together = Stage(nudging(0.5), Voice(bpe(alone=False), "." * 9, sure), guide).run()
    assert (apart.text, together.text) == ("x 你. ok fine", "x 你好 ok fine")


def wsd(window: int, threshold: float, draft: int = 8) -> GatePlan:
    return GatePlan("wsd", 0, draft, window=window, threshold=threshold)


@pytest.mark.parametrize("draft", [1, 3, 16])
@pytest.mark.parametrize("make_guide", [bytewise, bpe, sentencepiece])
def test_the_first_sure_window_hands_over_for_good(make_guide: Callable[[], Vocabulary], draft: int) -> None:
    switched = 0
    for seed, (window, threshold) in enumerate(((1, 0.99), (2, 0.7), (4, 0.6), (6, 0.7), (3, 1.1), (6, 0.9))):
        said, drafted = scripts("code", seed)
        base, guide = Voice(bytewise(), said, certainty(seed)), Voice(make_guide(), drafted)
        stage = Stage(wsd(window, threshold, draft), base, guide).run()
        ids, text = base.vocabulary.continuation(drafted), drafted
        logprobs = [stage.logprob(drafted[:n].encode(), id_) for n, id_ in enumerate(ids)]
        for n in range(window, len(ids) + 1):
            if math.exp(sum(logprobs[n - window : n]) / window) >= threshold:
                text = drafted[:n] + said[n:]
                switched += 1
                assert stage.sources == ["draft"] * n + ["base"] * (len(said[n:]) + 1)
                break
        assert stage.text == text
        assert [token.logprob for token in stage.answer[: stage.duet.nudged]] == logprobs[: stage.duet.nudged]
    assert 2 <= switched <= 5


def test_a_window_takes_what_the_base_has_read_and_nothing_else() -> None:
    base, guide = Voice(bytewise(), "abcd", lambda _: 1.0), Voice(bytewise(), "abc")
    assert Stage(wsd(2, 0.9, draft=1), base, guide).run().sources == ["draft"] * 2 + ["base"] * 3
    assert Stage(wsd(2, 0.9, draft=1), base, guide, again=False).run().sources == ["draft"] * 3
    assert Stage(wsd(2, 0.9, draft=3), base, guide, again=False).run().sources == ["draft"] * 3 + ["base"] * 2


def started(base: Vocabulary, guide: Vocabulary, draft: int = 8, context: int = 99) -> Duet:
    """A duet that waits for the guide's first token; its base is never sure."""
    ends = {"base_eos": frozenset({eos(base)}), "guide_eos": frozenset({eos(guide)})}
    return Duet(nudging(1.0, draft), base, guide, **ends, guide_prompt=PROMPT, guide_context=context)


def test_special_tokens_of_the_guide_are_no_text() -> None:
    vocabulary = bpe()
    think = vocabulary.tokenizer.get_vocab()["<think>"]
    duet = started(vocabulary, vocabulary)
    for id_ in (think, *vocabulary.continuation("the"), think, eos(vocabulary)):
        assert duet.speaker == "guide"
        duet.take(id_)
    assert duet.draft == vocabulary.continuation("the")
    assert duet.guide_tokens[-1] == think
    endless = started(vocabulary, vocabulary)
    takes = 0
    while not endless.finish:
        endless.take(think)
        takes += 1
    assert (endless.finish, takes) == ("stop", 8 + 4)
    short = started(vocabulary, vocabulary, context=len(PROMPT))
    short.take(think)
    assert short.finish == "length"


def test_half_a_character_at_the_end_of_the_guide_is_dropped() -> None:
    letters = bytewise()
    duet = started(letters, letters)
    for spelled in (b"a", "é".encode()[:1]):
        duet.take(token(letters, spelled))
    duet.take(eos(letters))
    assert duet.draft == letters.continuation("a")
    assert [spoken.id for spoken in duet.look([Look(0, 0.0, None)] * 2).accepted] == letters.continuation("a")
    assert duet.finish == "stop"


@pytest.mark.parametrize(("make_base", "draft"), [(bpe, "the"), (sentencepiece, " the")])
def test_the_space_that_sentencepiece_hides_at_the_start(make_base: Callable[[], Vocabulary], draft: str) -> None:
    base, guide = make_base(), sentencepiece()
    pieces = guide.tokenizer.get_vocab()
    duet = started(base, guide)
    for piece in ("▁the", "▁d"):
        duet.take(pieces[piece])
    assert duet.draft == base.continuation(draft)
    agreeing = Look(base.continuation(" d")[0], 0.5, None)
    assert duet.look([agreeing] * (1 + len(duet.draft))).draw == len(base.continuation(draft))
    for id_ in base.continuation(" d"):
        duet.take(id_)
    assert duet.look([Look(0, 0.5, None)]).draw is None
    assert duet.guide_tokens == PROMPT + array("q", [pieces["▁the"], pieces["▁d"]])


def test_the_answer_ends_where_the_context_of_the_guide_does() -> None:
    base, guide = Voice(bytewise(), "", lambda _: 0.0), Voice(bytewise(), "one two three four five")
    stage = Stage(nudging(0.5), base, guide, context=len(PROMPT) + 10).run()
    assert (stage.text, stage.duet.finish) == ("one two thr", "length")  # the last one drawn needs no room
    talkative = Voice(bytewise(), "one 2 3 4 5 6 7", lambda n: 1.0 if n < 14 else 0.0)
    stage = Stage(nudging(0.5), talkative, guide, context=len(PROMPT) + 10).run()
    assert (stage.text, stage.duet.finish) == ("one 2 3 4 5 6 ", "length")
    assert started(bytewise(), bytewise(), context=1).finish == "length"


@pytest.mark.parametrize("plan", [nudging(0.5), wsd(3, 0.6, 5)], ids=["nudging", "wsd"])
def test_forks_go_separate_ways(plan: GatePlan) -> None:
    said, drafted = scripts("code", 3)
    base = Voice(bytewise(), said, certainty(3))
    alone = Stage(plan, base, Voice(bpe(), drafted)).run()
    other = Stage(plan, base, Voice(bpe(), drafted.upper()))
    for steps in range(0, 60, 3):
        stage = Stage(plan, base, Voice(bpe(), drafted))
        for _ in range(steps):
            stage.step()
            if stage.duet.finish or alone.answer == stage.answer:
                return
        other.duet, other.answer = stage.duet.fork(), stage.answer[:]
        other.run()
        assert stage.run().answer == alone.answer
