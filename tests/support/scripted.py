"""Toys that write what a test wants, for parts that have texts written: who reads what, and what comes of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from toy import Toy, byte_tokenizer, random_table

from trimtab.decoders.floor import Floor
from trimtab.engine.results import Result
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Message, Vocabulary

VOCAB, EOS = 257, 256
WORDS = Vocabulary(byte_tokenizer())
ASKED = (
    Message(role="user", content="Hm?"),
    Message(role="assistant", content="Yes."),
    Message(role="user", content="Why?"),
)
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, seed=1)


def spelled(messages: Sequence[Message]) -> str:
    """A conversation as the toys read it."""
    return "".join(f"<{each['role']}>{each['content']}\n" for each in messages) + "<assistant>"


class Scripted:
    """A model that writes a text by what stands in its prompt; a text that ends in `...` goes on for ever."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        """`texts` by a part of the prompt; the first that fits is written."""
        self._texts = texts
        self.prompts: list[str] = []
        """what it has read before it wrote, in order"""

    def __call__(self, prefix: Sequence[int]) -> np.ndarray:
        prompt, _, said = WORDS.decode(prefix, skip_special_tokens=False).rpartition("<assistant>")
        if not said and prompt:
            self.prompts.append(f"{prompt}<assistant>")
        text = next((text for key, text in self._texts.items() if key in prompt), "nothing")
        tokens = WORDS.continuation(text.removesuffix("...") * (100 if text.endswith("...") else 1))
        z = np.zeros(VOCAB)
        z[[*tokens, EOS][min(len(WORDS.continuation(said)), len(tokens))]] = 1e9
        return z


class Letters:
    """A model of eight letters that draws by its whole prompt, and notes the prompts."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self._table = random_table(9)
        self._letters = [WORDS.tokens[each] for each in "abcdefgh"]

    def __call__(self, prefix: Sequence[int]) -> np.ndarray:
        prompt, _, said = WORDS.decode(prefix, skip_special_tokens=False).rpartition("<assistant>")
        if not said and prompt:
            self.prompts.append(f"{prompt}<assistant>")
        z = np.full(VOCAB, -1e9)
        z[[*self._letters, EOS]] = self._table(prefix) - np.array([0.0] * 8 + [1.5])
        return z


def toy(base: Any = None, **guides: Any) -> Toy:
    """A toy with language-model guides; all the text that it decodes is known."""
    made = Toy(base or Scripted({"": "an answer"}), eos=EOS, rewards={"taste": lambda text: float(len(text))})
    for name, model in guides.items():
        made.add_lm(name, model)
    return made


def run(
    engine: Toy,
    *parts: Mapping[str, Any],
    messages: Sequence[Message] = ASKED,
    sampling: SamplingParams = GREEDY,
    choices: int = 1,
    floor: Floor | None = None,
    **decoding: Any,
) -> Result:
    prompt = WORDS.encode(spelled(messages))
    decoding = {"prompt": list(parts), **decoding}
    return engine.run(prompt, sampling, n=choices, decoding=decoding, messages=tuple(messages), floor=floor)
