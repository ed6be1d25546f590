"""A plan in the making that takes what can be done with the logits of vLLM's forward, and refuses the rest by name."""

from array import array
from collections.abc import Collection, Mapping
from typing import Final, NoReturn

from trimtab.decoders.steer.draft import AS_IT_IS, Draft, PromptView
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.plan import BASE, GatePlan
from trimtab.kernels.mixing import Transform
from trimtab.vllm.catalogue import Catalogue

ALONE: Final = array("q", [-1])
"""the prompt of a lane that reads the last token of the prompt and then the answer, as the place of that token"""
ELSEWHERE: Final = "ask a trimtab server for it (one with this vLLM as its remote base, or with the model itself)"


class TokenDraft(Draft):
    """What parts may ask for here: mixtures with guides that read the request's own prompt, and candidate sets."""

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__(catalogue.guides, _prompt, catalogue.base.rows)
        self._refused = catalogue.refused

    def add(self, guide: str, weight: float, *, field: str, view: PromptView = AS_IT_IS) -> None:
        if guide == BASE and view != AS_IT_IS:
            self._refuse(field, "vLLM runs the base once, on the request's prompt: leave out the second reading, or")
        if guide in self._refused:
            raise InvalidRequest(
                f"guide {guide!r} does not run inside vLLM: {self._refused[guide]}", param=self._path(field)
            )
        if view != AS_IT_IS and view != PromptView(empty=True):
            self._refuse(
                field, "vLLM hands over tokens, so that no guide can read another system message: leave it out, or"
            )
        super().add(guide, weight, field=field, view=view)

    def value(self, guide: str, weight: float, transform: Transform = "identity", *, field: str) -> None:
        self._refuse(field, "values of candidates are not read inside vLLM: mix with a language model (genarm), or")

    def scores_vocabulary(self, guide: str, *, field: str) -> bool:
        self._refuse(field, "value heads read hidden states, which vLLM keeps: mix with a language model (genarm), or")

    def limit(self, top_k: int, *, field: str) -> None:
        self._refuse(field, "vLLM has its own top_k of the steered distribution: send that, or")

    def vector(self, guide: str, coeff: float, *, field: str) -> None:
        self._refuse(field, "control vectors change hidden states, which vLLM keeps: use contrastive or genarm, or")

    def adapt(
        self, guide: str, scales: Mapping[str, float], *, general: float = 1.0, field: str, scales_field: str
    ) -> None:
        self._refuse(field, "the base's adapters are vLLM's own (LoRA): name one as the request's model, or")

    def reference(self, *, field: str) -> None:
        self._refuse(field, "nothing is measured inside vLLM: leave it out, or")

    def edit_hidden(self, guide: str, rate: float, steps: int, *, field: str) -> None:
        self._refuse(field, "vLLM keeps hidden states to itself: use genarm, or")

    def gate(self, guide: str, plan: GatePlan, *, field: str) -> None:
        self._refuse(field, "two models cannot take turns in a row of vLLM: mix them (genarm, proxy_tuning), or")

    def call(self, guide: str, *, field: str) -> None:
        self._refuse(field, "searches do not run inside vLLM: leave it out, or")

    def writer(self, guide: str, *, field: str) -> None:
        self._refuse(field, "guides write no texts inside vLLM: leave it out, or")

    def embedder(self, guide: str, *, field: str) -> None:
        self._refuse(field, "nothing is retrieved inside vLLM: leave it out, or")

    def weigh(self, guide: str, rewards: Collection[str], *, field: str) -> None:
        self._refuse(field, "rewards are not weighed inside vLLM: leave it out, or")

    def _refuse(self, field: str, why: str) -> NoReturn:
        raise InvalidRequest(f"{why} {ELSEWHERE}", param=self._path(field))


def _prompt(name: str, view: PromptView) -> "array[int]":
    """What a lane reads: nobody knows the prompt at admission, so all of it (empty), or a place in it."""
    return ALONE if view.empty else array("q")
