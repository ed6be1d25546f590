"""What the guides of a request read before its answer: adapters under a chat template of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import adapter_folder, merged_folder
from plain import Plain, greedy
from safetensors.torch import load_file
from steered import GREEDY, TOKENS, chat, ids, load, user
from tiny import tiny_folder
from torch import Tensor
from toy import byte_tokenizer

from trimtab import LLM
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.vocabulary import Message
from trimtab.requests import GenerationRequest

BOS = 257
ALONE = (
    "{{ bos_token }}{% if messages[-1].role == 'assistant' %}{{ messages[-1].content }}"
    "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}{% endif %}"
)
"""the answer alone is read"""
TALK = (Message(role="user", content="Hi"), Message(role="assistant", content="Well, "))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("prompts")
    tiny_folder(place / "base")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.save_pretrained(place / "base")
    for name in ("usual", "alone"):
        adapter_folder(place / name, place / "base", seed=5, score=True)
    (place / "alone" / "chat_template.jinja").write_text(ALONE)
    merged_folder(place / "merged", place / "base", place / "alone")
    return place


@pytest.fixture(scope="module")
def llm(place: Path) -> Iterator[LLM]:
    guides = {
        "usual": {"role": "reward", "model": str(place / "usual")},
        "alone": {"role": "reward", "model": str(place / "alone")},
        "voice": {"role": "lm", "model": str(place / "alone")},
    }
    with load(place / "base", guides) as llm:
        yield llm


def read(llm: LLM, decoding: dict[str, Any], **request: Any) -> list[int]:
    """The prompt of the only lane."""
    (lane,) = llm.prepare(GenerationRequest(decoding=decoding, **request)).plan.lanes
    return list(lane.prompt)


BY_REWARD, BY_VOICE = {"strategy": "args", "reward": "alone"}, {"strategy": "genarm", "arm": "voice"}


@pytest.mark.parametrize("decoding", [BY_REWARD, BY_VOICE])
def test_an_adapter_reads_candidates_under_its_own_template(llm: LLM, decoding: dict[str, Any]) -> None:
    assert read(llm, decoding, messages=tuple(user())) == [BOS]
    going_on = {"messages": TALK, "add_generation_prompt": False, "continue_final_message": True}
    assert read(llm, decoding, **going_on) == [BOS, *byte_tokenizer().encode("Well, ")]
    assert read(llm, decoding, prompt="Hi") == byte_tokenizer().encode("Hi")  # a text is no conversation
    with pytest.raises(InvalidRequest, match=r"guide '\w+': the chat template refuses this conversation"):
        read(llm, decoding, **going_on | {"messages": TALK[:1]})


def test_an_adapter_without_one_reads_what_the_base_reads(llm: LLM) -> None:
    decoding = {"strategy": "args", "reward": "usual"}
    for request in (
        {"messages": tuple(user())},
        {"messages": TALK, "add_generation_prompt": False, "continue_final_message": True},
    ):
        (prepared,) = (llm.prepare(GenerationRequest(decoding=decoding, **request)),)
        assert [lane.prompt for lane in prepared.plan.lanes] == [prepared.prompt_ids]


def test_steering_by_the_answer_alone(llm: LLM, place: Path) -> None:
    """The rows of the adapter share the base's forward and hold another prompt."""
    base, judge = Plain(place / "base"), Plain(place / "merged")
    head = load_file(place / "alone" / "adapter_model.safetensors")["base_model.model.score.weight"][0]
    prompt = byte_tokenizer().encode("<user>Hi\n<assistant>")

    def score(answer: list[int]) -> float:
        hidden = judge.model.base_model(input_ids=torch.tensor([[BOS, *answer]])).last_hidden_state[0, -1]
        return float(head @ hidden)

    def args(h: list[int]) -> Tensor:
        logits = base.logits(h)
        best = logits.topk(5).indices.tolist()
        steered = torch.full_like(logits, -torch.inf)
        for token in best:
            steered[token] = logits[token] + 3.0 * score([*h[len(prompt) :], token])
        return steered

    decoding = {"strategy": "args", "reward": "alone", "k": 5, "w": 3.0}
    answer = ids(chat(llm, decoding))
    assert answer == greedy(args, prompt, TOKENS)
    assert answer != ids(chat(llm, {**decoding, "reward": "usual"}))
    assert answer != ids(chat(llm, None, GREEDY))
