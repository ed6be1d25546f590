"""Nothing in `apply` waits for the device: an instrument fails where a value would be read on the host."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tiny import VOCAB
from unread import OnDevice, Unread
from vllm_runner import Two, Update, params

from trimtab.engine import kv
from trimtab.engine.staging import place
from trimtab.vllm import guide, history, steering
from trimtab.vllm.guide import RunningGuide
from trimtab.vllm.processor import TrimtabProcessor

Make = Callable[..., TrimtabProcessor]

EVERYTHING: list[dict[str, Any]] = [
    {"trimtab": json.dumps({"strategy": "genarm", "arms": {"arm": 1.0, "anti": -0.5}})},
    {"trimtab": json.dumps({"strategy": "genarm", "arm": "foreign"})},
    {"trimtab": json.dumps({"strategy": "mod", "weights": {"base": 0.5, "arm": 0.5}, "alpha": 1.0})},
    {"trimtab": json.dumps({"strategy": "contrastive", "amateur": "arm", "amateur_sees_prompt": False})},
    {"trimtab": json.dumps({"strategy": "candidates", "top_k": 5, "top_p": 0.9, "alpha": 0.1})},
    {"trimtab_repetition_penalty": 1.2, "trimtab_presence_penalty": 0.5, "trimtab_frequency_penalty": 0.5},
    {"trimtab_abstain_below": 0.5, "trimtab_abstain_within": 0},
]


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: bool((x > 0).all()),
        lambda x: int(x[0, 0]),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), torch.tensor(1.0)),
        lambda x: x.add(1).softmax(dim=1).tolist(),
        lambda x: float(x.add(1).amax()),
        lambda x: x.unique(),
    ],
)
def test_the_instrument_sees_what_waits(reads: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(AssertionError, match=r"waits for the device"), Unread():
        reads(torch.randn(2, 3).as_subclass(OnDevice))


@pytest.fixture
def tainted(make: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A processor whose guides read what is on the device: ids, positions and indices, in all of their forwards."""
    own = RunningGuide._own

    def told(self: RunningGuide, ids: torch.Tensor) -> torch.Tensor:
        return own(self, ids).as_subclass(OnDevice)

    def placed(arrays: Sequence[Any], device: torch.device) -> list[torch.Tensor]:
        return [each.as_subclass(OnDevice) for each in place(arrays, device)]

    def made(where: Any) -> TrimtabProcessor:
        processor = make(where)  # guides may wait while they are loaded
        monkeypatch.setattr(RunningGuide, "_own", told)
        for module in (kv, guide, history, steering):
            monkeypatch.setattr(module, "place", placed)
        return processor

    return made


def test_the_instrument_watches_the_forwards_of_guides(tainted: Make) -> None:
    processor = tainted(torch.device("cpu"))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def read(module: Any, given: Any, named: dict[str, torch.Tensor]) -> None:
        seen.append((named["input_ids"], named["position_ids"]))

    processor._guides["arm"]._model.runner.model.base_model.register_forward_pre_hook(read, with_kwargs=True)
    processor.update_state(Update(added=[(0, params(EVERYTHING[0]), [70, 71, 72], [])]))
    processor.apply(torch.zeros(1, VOCAB))
    assert len(seen) == 2, "the prompt and its last token"
    for each in (tensor for pair in seen for tensor in pair):
        with pytest.raises(AssertionError, match=r"waits for the device"):
            each.tolist()


def test_what_ids_are_carried_over_by_is_copied_when_the_guide_is_loaded(make: Make) -> None:
    guides = make(torch.device("cpu"))._guides
    assert list(guides["foreign"]._translation._gathers) == [torch.device("cpu")]
    assert not guides["arm"]._translation._gathers, "the ids are the same"


def test_v1_applies_without_waiting(tainted: Make) -> None:
    processor = tainted(torch.device("cpu"))
    outputs: list[list[int]] = [[] for _ in EVERYTHING]
    added = [(i, params(extra), [70 + i, 71, 72], outputs[i]) for i, extra in enumerate(EVERYTHING)]
    processor.update_state(Update(added=added))
    for step in range(3):
        given = torch.randn(len(EVERYTHING) + 1, VOCAB)
        with Unread():
            found = processor.apply(given.clone().as_subclass(OnDevice)).as_subclass(torch.Tensor)
        assert (found[:-1] != given[:-1]).any(dim=1).all(), "a row was not steered"
        for output in outputs:
            output.append(70 + step)


def test_v2_applies_without_waiting(tainted: Make) -> None:
    runner = Two(tainted)
    runner.states.all_token_ids.gpu = runner.states.all_token_ids.gpu.as_subclass(OnDevice)
    for slot, extra in enumerate(EVERYTHING):
        runner.add(slot, params(extra), [70 + slot, 71, 72])
    slots = list(range(len(EVERYTHING)))
    for step in range(3):
        given = torch.randn(len(slots), VOCAB)
        with Unread():
            found = runner.step(slots, given.clone().as_subclass(OnDevice)).as_subclass(torch.Tensor)
        assert (found != given).any(dim=1).all(), "a row was not steered"
        for slot in slots:
            runner.append(slot, 70 + step)
