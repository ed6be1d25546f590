"""Where steering meets the rest of a request: other numberings, missing rows, edits, bans, continued messages."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from folders import foreign_folder
from plain import Plain, PlainScorer, base_prompt, greedy
from steered import GREEDY, TOKENS, chat, furnish, guides, ids, load, user
from torch import Tensor
from toy import byte_tokenizer
from transformers import AutoTokenizer

from trimtab import LLM
from trimtab.engine.vocabulary import Message
from trimtab.requests import GenerationRequest

EOS = 256
ROWS = 262
"""of a guide that has fewer than the base"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = furnish(tmp_path_factory.mktemp("edges"))
    foreign_folder(place / "foreign", seed=1)
    small = Plain(place / "anti").model
    small.resize_token_embeddings(ROWS)
    small.save_pretrained(place / "small")
    byte_tokenizer().save_pretrained(place / "small")
    return place


@pytest.fixture(scope="module")
def llm(place: Path) -> Iterator[LLM]:
    more = {name: {"role": "lm", "model": str(place / name)} for name in ("foreign", "small")}
    with load(place / "base", {**guides(place), **more}) as llm:
        yield llm


@pytest.fixture(scope="module")
def base(place: Path) -> Plain:
    return Plain(place / "base")


@pytest.fixture(scope="module")
def arm(place: Path) -> Plain:
    return Plain(place / "arm")


def test_a_guide_that_numbers_the_same_bytes_otherwise(llm: LLM, place: Path, base: Plain) -> None:
    """Its merged words have no counterpart; of the base's tokens it lacks those without a string."""
    foreign, tokenizer = Plain(place / "foreign"), AutoTokenizer.from_pretrained(place / "foreign")
    names = byte_tokenizer().convert_ids_to_tokens(range(EOS))
    there = [*tokenizer.convert_tokens_to_ids(names), tokenizer.eos_token_id]
    prompt, own = base_prompt("Hi"), tokenizer.encode("[user] Hi;[reply] ")

    def mixed(h: list[int]) -> Tensor:
        s = base.logits(h)
        s[len(there) :] = -torch.inf
        s[: len(there)] += foreign.logits([*own, *(there[token] for token in h[len(prompt) :])])[there]
        return s

    # The base's ids without a string keep their place, where the guide has another token: they are not drawn here.
    bias = dict.fromkeys(range(len(there), 272), -1000.0)
    sampling = GREEDY.model_copy(update={"logit_bias": bias})
    assert ids(chat(llm, {"strategy": "genarm", "arm": "foreign"}, sampling)) == greedy(mixed, prompt, TOKENS)


def test_tokens_without_a_row_in_a_guide_are_barred_at_any_weight(llm: LLM, place: Path, base: Plain) -> None:
    small = Plain(place / "small")
    for weight in (0.7, -0.7):

        def mixed(h: list[int], weight: float = weight) -> Tensor:
            s = base.logits(h)
            s[ROWS:] = -torch.inf
            s[:ROWS] += weight * small.logits([token if token < ROWS else EOS for token in h])
            return s

        sampling = GREEDY.model_copy(update={"logit_bias": dict.fromkeys(range(ROWS, 272), 20.0)})
        found = ids(chat(llm, {"strategy": "genarm", "arm": "small", "alpha": weight}, sampling))
        assert found == greedy(mixed, base_prompt("Hi"), TOKENS)


def test_logprobs_are_the_bases_and_edits_come_after_the_mixture(llm: LLM, base: Plain, arm: Plain) -> None:
    prompt = base_prompt("Hi")

    def edited(h: list[int]) -> Tensor:
        s = base.logits(h) + arm.logits(h)
        s[97] += 3.0
        for token in set(h[len(prompt) :]):
            s[token] -= 1.5 + 0.5 * h[len(prompt) :].count(token)
        return s

    changes = {"logit_bias": {97: 3.0}, "presence_penalty": 1.5, "frequency_penalty": 0.5, "logprobs": 2}
    choice = chat(llm, {"strategy": "genarm", "arm": "arm"}, GREEDY.model_copy(update=changes)).choices[0]
    tokens = list(choice.token_ids)
    assert tokens == greedy(edited, prompt, TOKENS)
    for i, told in enumerate(choice.logprobs or ()):
        logprobs = base.logprobs([*prompt, *tokens[:i]])
        assert told.logprob == pytest.approx(float(logprobs[told.id]), abs=1e-4)
        assert [token for token, _ in told.top] == logprobs.topk(2).indices.tolist()


def test_a_banned_end_is_no_candidate(llm: LLM, place: Path, base: Plain) -> None:
    scorer, prompt = PlainScorer(place / "taste"), base_prompt("Hi")
    own = scorer.prompt("Hi")

    def args(h: list[int]) -> Tensor:
        z = base.logits(h)
        z[EOS] += 100.0
        if len(h) - len(prompt) < 4:
            z[EOS] = -torch.inf
        top = z.topk(3).indices.tolist()
        s = torch.full_like(z, -torch.inf)
        for token in top:
            s[token] = z[token] + 1.5 * scorer.score([*own, *h[len(prompt) :], token])
        return s

    sampling = GREEDY.model_copy(update={"logit_bias": {EOS: 100.0}, "min_tokens": 4})
    choice = chat(llm, {"strategy": "args", "reward": "taste", "k": 3}, sampling).choices[0]
    assert list(choice.token_ids) == greedy(args, prompt, TOKENS)
    assert choice.token_ids[-1] == EOS
    assert len(choice.token_ids) == 5


def test_a_continued_message_is_continued_by_the_guides_too(llm: LLM, place: Path, base: Plain) -> None:
    messages = (*user(), Message(role="assistant", content="Well"))
    request = GenerationRequest(
        messages=messages,
        sampling=GREEDY,
        add_generation_prompt=False,
        continue_final_message=True,
        decoding={"strategy": "args", "reward": "taste", "k": 4},
    )
    scorer = PlainScorer(place / "taste")
    prompt, own = (
        byte_tokenizer().encode("<user>Hi\n<assistant>Well"),
        byte_tokenizer().encode("[user] Hi;[assistant] Well"),
    )

    def args(h: list[int]) -> Tensor:
        z = base.logits(h)
        s = torch.full_like(z, -torch.inf)
        for token in z.topk(4).indices.tolist():
            s[token] = z[token] + 1.5 * scorer.score([*own, *h[len(prompt) :], token])
        return s

    (found,) = llm._run([request], progress=False)
    assert found.usage.prompt_tokens == len(prompt)
    assert ids(found) == greedy(args, prompt, TOKENS)


def test_nothing_to_say_costs_nothing(llm: LLM) -> None:
    none = GREEDY.model_copy(update={"max_tokens": 0})
    for decoding in ({"strategy": "genarm", "arm": "arm"}, {"strategy": "nudging", "aligned": "foreign"}):
        choice = chat(llm, decoding, none).choices[0]
        assert (choice.text, choice.token_ids, choice.finish_reason) == ("", (), "length")
        assert choice.steering is not None
        assert (choice.steering.tokens, choice.steering.kl, choice.steering.kl_mean) == (0, 0.0, None)
