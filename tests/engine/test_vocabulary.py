import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.sources import resolve
from trimtab.engine.vocabulary import Message, TextStream, Vocabulary

TEXTS = (
    "Der Bär trägt Äpfel über die Straße; ça va, señor?",
    "emoji 👩‍👩‍👧 🇫🇷 é vs e\u0301 \U0001f9ff",
    "你好世界。これはテスト ไทย",
    "def f(x):\n\treturn {'a': [x, 1.5e-3]}  # ok\n\n\n    pass\r\n",
    " leading, trailing ",
    "a",
    "",
)


def byte_level() -> Vocabulary:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>"))


def sentencepiece() -> Vocabulary:
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁a",
        "b",
        "ab",
        "▁ab",
    ]
    pieces += [character for character in "abcdefghijklmnopqrstuvwxyz" if character != "b"]
    merges = [("a", "b"), ("▁", "a"), ("▁", "ab")]
    tokenizer = Tokenizer(
        models.BPE({piece: id_ for id_, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Vocabulary(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    )


def metaspace() -> Vocabulary:
    pieces = [
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((character, -3.0) for character in sorted(set("".join(TEXTS)) - {" "})),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))


def words() -> Vocabulary:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "red": 1, "green": 2, "blue": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))


def demo() -> Vocabulary:
    return Vocabulary(AutoTokenizer.from_pretrained(resolve("demo")))


KINDS = [byte_level, sentencepiece, metaspace, words, pytest.param(demo, marks=pytest.mark.demo)]


@pytest.fixture(params=KINDS)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    made: Vocabulary = request.param()
    return made


def streamed(stream: TextStream, ids: list[int]) -> str:
    return "".join([stream.push(id_) for id_ in ids]) + stream.flush()


def test_pushes_and_flush_concatenate_to_decode(vocabulary: Vocabulary) -> None:
    draw = random.Random(0)
    texts = [*TEXTS, "red green blue", *("".join(draw.sample("".join(TEXTS), 40)) for _ in range(30))]
    for text in texts:
        ids = vocabulary.encode(text)
        stream = TextStream(vocabulary)
        assert streamed(stream, ids) == vocabulary.decode(ids)
        assert stream.text == vocabulary.decode(ids)


def test_random_ids_of_a_byte_level_tokenizer_decode_alike() -> None:
    vocabulary = byte_level()
    draw = random.Random(1)
    for skip in (True, False):
        for _ in range(50):  # mostly invalid UTF-8
            ids = [draw.randrange(vocabulary.size) for _ in range(30)]
            assert streamed(TextStream(vocabulary, skip_special=skip), ids) == vocabulary.decode(ids, skip)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_token_bytes_concatenate_to_the_text(make: type[Vocabulary]) -> None:
    vocabulary = make()
    for text in TEXTS:
        joined = b"".join(vocabulary.token_bytes(id_) for id_ in vocabulary.encode(text))
        assert joined.decode().removeprefix(" ") == text.removeprefix(" ")


def test_token_bytes_of_each_spelling() -> None:
    plain = byte_level()
    ids = plain.tokenizer.get_vocab()
    assert plain.token_bytes(ids["Ġ"]) == b" "
    assert plain.token_bytes(ids["Ċ"]) == b"\n"
    assert plain.token_bytes(ids["ð"]) == b"\xf0"
    assert plain.token_bytes(ids["<|end|>"]) == b"<|end|>"
    pieces = sentencepiece()
    ids = pieces.tokenizer.get_vocab()
    assert pieces.token_bytes(ids["<0x0A>"]) == b"\n"
    assert pieces.token_bytes(ids["▁ab"]) == b" ab"
    assert Vocabulary(pieces.tokenizer, model_rows=1000).token_bytes(999) == b""


def test_incomplete_characters_wait_and_are_replaced_at_the_end() -> None:
    vocabulary = byte_level()
    ids = [vocabulary.tokenizer.get_vocab()[token] for token in ("ð", "Ł", "ĺ")]  # three bytes of an emoji
    stream = TextStream(vocabulary)
    assert [stream.push(id_) for id_ in ids] == ["", "", ""]
    assert stream.flush() == vocabulary.decode(ids) == "\ufffd"


def test_special_tokens_are_skipped_or_shown() -> None:
    vocabulary = byte_level()
    end = vocabulary.tokenizer.eos_token_id
    assert vocabulary.special_ids == {end}
    ids = [*vocabulary.encode("a"), end]
    assert streamed(TextStream(vocabulary), ids) == "a"
    assert streamed(TextStream(vocabulary, skip_special=False), ids) == "a<|end|>"


@pytest.mark.parametrize(
    ("stop", "text", "expected", "hit"),
    [
        (("STOP",), "one STOP two", "one ", "STOP"),
        (("STOP",), "one STO two ST", "one STO two ST", None),
        (("b c", "c d"), "a b c d", "a ", "b c"),
        (("zz", "b"), "abzz", "a", "b"),
        (("abcd", "bc"), "xabcd", "xa", "bc"),  # complete first
        (("bc", "abc"), "xabc", "x", "abc"),  # complete together: the longest
        (("aab",), "aaaab", "aa", "aab"),
        (("é\n",), "caf é\n!", "caf ", "é\n"),
        (("👩",), "x👩y", "x", "👩"),
    ],
)
def test_stop_strings_cut_the_text_whatever_the_tokens(
    stop: tuple[str, ...], text: str, expected: str, hit: str | None
) -> None:
    vocabulary = byte_level()
    by_bytes = [vocabulary.tokenizer.get_vocab()[s] for s in _alphabet(text)]
    for ids in (vocabulary.encode(text), by_bytes):
        stream = TextStream(vocabulary, stop=stop)
        assert streamed(stream, ids) == expected
        assert stream.stopped == hit
        including = TextStream(vocabulary, stop=stop, include_stop=True)
        assert streamed(including, ids) == expected + (hit or "")


def _alphabet(text: str) -> list[str]:
    """GPT-2's stand-in of every byte, from the library's own pre-tokenizer."""
    [*pieces] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return list("".join(piece for piece, _ in pieces))


def test_text_is_sent_as_soon_as_no_stop_string_can_begin_in_it() -> None:
    vocabulary = byte_level()
    letters = vocabulary.tokenizer.get_vocab()
    stream = TextStream(vocabulary, stop=("xyz",))
    assert [stream.push(letters[letter]) for letter in "axybxy"] == ["a", "", "", "xyb", "", ""]
    assert stream.flush() == "xy"
    assert stream.stopped is None


def test_nothing_follows_a_stop_string() -> None:
    vocabulary = byte_level()
    letters = vocabulary.tokenizer.get_vocab()
    stream = TextStream(vocabulary, stop=("b",))
    assert [stream.push(letters[letter]) for letter in "abcd"] == ["a", "", "", ""]
    assert stream.flush() == ""
    assert stream.text == "a"


def test_forks_go_separate_ways() -> None:
    vocabulary = byte_level()
    letters = vocabulary.tokenizer.get_vocab()
    stream = TextStream(vocabulary, stop=("xyz",))
    for token in "axyð":
        stream.push(letters[token])
    fork = stream.fork()
    fork.push(letters["z"])
    stream.push(letters["Ł"])
    fork.flush()
    assert stream.flush() == "xy\ufffd"
    assert (stream.text, fork.text) == ("axy\ufffd", "axy\ufffdz")


def test_lone_surrogates_are_refused() -> None:
    vocabulary = byte_level()
    with pytest.raises(InvalidRequest, match="character 1") as caught:
        vocabulary.encode("a\ud800b")
    assert caught.value.code == "invalid_unicode"


def test_tokens_without_an_embedding_are_refused() -> None:
    vocabulary = Vocabulary(words().tokenizer, model_rows=3)
    assert vocabulary.size == 3
    assert vocabulary.encode("red green") == [1, 2]
    with pytest.raises(InvalidRequest, match="'blue'"):
        vocabulary.encode("red blue")


TEMPLATE = (
    "{% if messages[0].role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{{ mood or '' }}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_chat_follows_the_template() -> None:
    vocabulary = byte_level()
    user, answer = Message(role="user", content="hi"), Message(role="assistant", content="yo")
    with pytest.raises(InvalidRequest, match="no chat template") as caught:
        vocabulary.chat([user])
    assert caught.value.param == "messages"
    vocabulary.tokenizer.chat_template = TEMPLATE

    def shown(*messages: Message, generation: bool = True, final: bool = False, **variables: object) -> str:
        ids = vocabulary.chat(
            messages,
            add_generation_prompt=generation,
            continue_final_message=final,
            template_kwargs=variables,
        )
        return vocabulary.decode(ids, skip_special_tokens=False)

    assert shown(user) == "[user]hi<|end|>[assistant]"
    assert shown(user, answer, generation=False) == "[user]hi<|end|>[assistant]yo<|end|>"
    assert shown(user, answer, generation=False, final=True) == "[user]hi<|end|>[assistant]yo"
    assert shown(user, mood="calm") == "calm[user]hi<|end|>[assistant]"
    assert vocabulary.tokenizer.eos_token_id in vocabulary.chat([user])
    with pytest.raises(InvalidRequest, match="no tools here"):
        vocabulary.chat([Message(role="tool", content="")])
    with pytest.raises(InvalidRequest, match="continue_final_message"):
        vocabulary.chat([user], continue_final_message=True)
    with pytest.raises(InvalidRequest, match="'chat_template'"):
        vocabulary.chat([user], template_kwargs={"chat_template": "{{ 1 }}"})
    with pytest.raises(InvalidRequest, match="surrogate") as caught:
        vocabulary.chat([Message(role="user", content="\udfff")])
    assert (caught.value.param, caught.value.code) == ("messages", "invalid_unicode")


def test_spaces_before_punctuation_survive() -> None:
    vocabulary = byte_level()
    vocabulary.tokenizer.clean_up_tokenization_spaces = True
    ids = vocabulary.encode("a , b .")
    assert vocabulary.decode(ids) == streamed(TextStream(vocabulary), ids) == "a , b ."


def prefixed() -> Vocabulary:
    """Llama's older files: a normaliser puts the dummy space in front of every text."""
    tokenizer = sentencepiece().tokenizer.backend_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>"))


def spaced() -> Vocabulary:
    tokenizer = byte_level().tokenizer.backend_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>"))


def composed() -> Vocabulary:
    """Qwen's normaliser writes an accent and its letter as one."""
    tokenizer = byte_level().tokenizer.backend_tokenizer
    tokenizer.normalizer = normalizers.NFC()
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>"))


@pytest.mark.parametrize(
    "make",
    [byte_level, sentencepiece, prefixed, spaced, composed, pytest.param(demo, marks=pytest.mark.demo)],
)
def test_a_continuation_adds_the_bytes_of_its_text_and_no_others(make: type[Vocabulary]) -> None:
    vocabulary = make()
    texts = [*TEXTS, "word", "  two", "\n\nab\n", "   ", " ", "\t", "ab ", "x <|end|> </s> <unk> y", "\u212b"]
    for text in texts:
        ids = vocabulary.continuation(text)
        assert b"".join(vocabulary.token_bytes(id_) for id_ in ids) == text.encode()
        assert not vocabulary.special_ids.intersection(ids)
        before = vocabulary.continuation("so")
        assert vocabulary.decode([*before, *ids]) == "so" + text


def test_only_the_word_that_suffers_is_spelled_differently() -> None:
    plain, normalised = byte_level(), composed()
    odd = " e\u0301"
    assert normalised.encode(odd) != plain.encode(odd)
    ids = normalised.continuation("def f(x)" + odd + "    pass")
    assert ids == [*plain.encode("def f(x)"), *plain.encode(" e"), *plain.encode("\u0301"), *plain.encode("    pass")]


def test_a_special_token_of_one_byte_does_not_spell_it() -> None:
    vocabulary = sentencepiece()
    vocabulary.tokenizer.add_tokens([AddedToken("b", special=True)])
    special = Vocabulary(vocabulary.tokenizer)
    ids = vocabulary.tokenizer.get_vocab()
    assert ids["b"] in special.encode("b")
    assert special.continuation("cb") == [ids["c"], ids["<0x62>"]]


def test_vocabularies_that_cannot_continue_say_so() -> None:
    with pytest.raises(ValueError, match="cannot spell ' '"):
        words().continuation("red green")
    with pytest.raises(ValueError, match="byte-level"):
        metaspace().continuation("\u1234")


def test_which_vocabularies_hide_the_first_space() -> None:
    kinds = (byte_level, sentencepiece, prefixed, metaspace, words)
    assert [make().drops_first_space for make in kinds] == [False, True, True, True, False]


def test_a_vocabulary_under_another_template_shares_its_tables() -> None:
    vocabulary = byte_level()
    vocabulary.tokenizer.chat_template = "<{{ messages[-1].content }}>"
    messages = [Message(role="user", content="Hi")]
    other = vocabulary.with_template("{{ messages[-1].content }}!")
    assert other.chat(messages) == vocabulary.encode("Hi!")
    assert vocabulary.chat(messages) == vocabulary.encode("<Hi>")
    assert other.tokens is vocabulary.tokens
    assert other.__dict__["_table"] is vocabulary.__dict__["_table"]
