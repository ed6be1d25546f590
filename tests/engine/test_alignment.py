from array import array

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trimtab.engine.alignment import NO_TOKEN, Translation
from trimtab.engine.vocabulary import Vocabulary


def byte_level(pieces: list[str], eos: str = "<eos>", plain: tuple[str, ...] = ()) -> Vocabulary:
    """Tokens in this order, then the end and added tokens that are not special."""
    tokenizer = Tokenizer(models.BPE({piece: id_ for id_, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)
    fast.add_tokens([AddedToken(content, special=False, normalized=False) for content in plain])
    return Vocabulary(fast)


def sentencepiece(pieces: list[str]) -> Vocabulary:
    model = models.BPE({piece: id_ for id_, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>"))


LETTERS = ["a", "b", "Ġ", "Ġa", "é"]


def test_ids_and_logits_follow_the_tokens_through_another_order() -> None:
    base, guide = byte_level(LETTERS), byte_level([*reversed(LETTERS), "1", "2"])
    between = Translation.between(base, guide, 8, 9)  # both have padding rows
    assert between is not None
    assert not between.identity
    expected = [4, 3, 2, 1, 0, 7, NO_TOKEN, NO_TOKEN]
    assert [between.token(id_) for id_ in range(8)] == expected
    assert between.tokens(array("q", [5, 0, 7, 0])) == array("q", [7, 4, NO_TOKEN, 4])
    assert between.tokens(array("q")) == array("q")
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    translated = between.logits(logits)
    for id_, theirs in enumerate(expected):
        column = logits[:, theirs] if theirs != NO_TOKEN else torch.full((3,), -torch.inf)
        assert torch.equal(translated[:, id_], column)


@pytest.mark.parametrize("rows", [6, 9])
def test_one_vocabulary_needs_no_gather(rows: int) -> None:
    vocabulary = byte_level(LETTERS)
    logits = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    same = Translation.between(vocabulary, byte_level(LETTERS), 8, 8)
    assert same is not None
    assert same.identity
    assert same.logits(logits) is logits
    other = Translation.between(vocabulary, vocabulary, rows, 8)
    assert other is not None
    assert other.identity
    assert other.token(5) == 5
    translated = other.logits(logits)
    assert translated.shape == (2, rows)
    assert torch.equal(translated[:, :8], logits[:, :rows])
    assert bool((translated[:, 8:] == -torch.inf).all())
    assert rows == 6 or other.token(8) == NO_TOKEN


def test_a_missing_ordinary_token_means_none_at_all() -> None:
    guide = byte_level(LETTERS[:-1])
    assert Translation.between(byte_level(LETTERS), guide, 6, 5) is None
    assert Translation.between(guide, byte_level(LETTERS), 5, 6) is not None
    # a token that the guide's weights have no row for is missing too
    assert Translation.between(byte_level(LETTERS), byte_level(["x", *LETTERS]), 6, 5) is None


def test_pieces_win_over_byte_tokens_unless_the_string_is_the_same() -> None:
    base = byte_level(["b", "a", "Ġ"], eos="</s>")
    guide = sentencepiece(["<unk>", "</s>", "<0x61>", "<0x62>", "<0x20>", "a", "b", "▁"])
    between = Translation.between(base, guide, 4, 8)
    assert between is not None
    assert [between.token(id_) for id_ in range(4)] == [6, 5, 7, 1]
    shifted = sentencepiece(["</s>", "<unk>", "a", "b", "▁", "<0x20>", "<0x61>"])
    again = Translation.between(shifted, guide, 7, 8)
    assert again is not None
    assert [again.token(id_) for id_ in range(7)] == [1, 0, 5, 6, 7, 4, 2]


def test_special_tokens_match_special_ones_alone_and_added_ones_may_lack() -> None:
    base = byte_level([*LETTERS, "<s>"], eos="<s2>", plain=("<think>",))
    guide = byte_level([*LETTERS, "<s>"], eos="<end>")
    ids = (5, 6, 7)  # "<s>", the end, "<think>"
    between = Translation.between(base, guide, 8, 7)
    assert between is not None
    assert [between.token(id_) for id_ in ids] == [5, NO_TOKEN, NO_TOKEN]
    ending = Translation.between(base, guide, 8, 7, base_eos={6}, guide_eos={6})
    assert ending is not None
    assert [ending.token(id_) for id_ in ids] == [5, 6, NO_TOKEN]
    impostor = byte_level(LETTERS, eos="<s>")  # its "<s>" is no text
    assert Translation.between(base, impostor, 8, 6) is None
    named = Translation.between(impostor, byte_level(["x", *LETTERS], eos="<s>"), 6, 7, base_eos={5}, guide_eos={0})
    assert named is not None
    assert named.token(5) == 6  # by its string: no need of the role


def test_a_token_beyond_the_rows_of_the_guide_is_fetched_from_within() -> None:
    base = sentencepiece(["<unk>", "</s>", "a", "<0x61>"])
    between = Translation.between(base, sentencepiece(["<unk>", "</s>", "a"]), 4, 3)
    assert between is not None
    assert between.logits(torch.tensor([[0.0, 1.0, 2.0]])).tolist() == [[0.0, 1.0, 2.0, 2.0]]


def test_tokens_whose_bytes_only_a_decoder_knows_match_by_string() -> None:
    def suffixed(*names: str) -> Vocabulary:
        """Old BPE files mark the end of a word, which the decoder turns into a space or nothing."""
        pieces = {name: id_ for id_, name in enumerate(("<unk>", *names))}
        tokenizer = Tokenizer(models.BPE(pieces, [], unk_token="<unk>", end_of_word_suffix="</w>"))
        tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
        return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))

    base = suffixed("low", "low</w>")
    between = Translation.between(base, suffixed("low</w>", "low"), 3, 3)
    assert between is not None
    assert between.tokens(array("q", [0, 1, 2])) == array("q", [0, 2, 1])
    assert Translation.between(base, suffixed("low"), 3, 2) is None
