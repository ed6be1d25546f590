"""The adapter: which layers, which dtype, exact log-probabilities, and a folder that the engine runs as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from steered import DRAWN, chat, ids, load
from taught import KINDS, tensors, weights
from tiny import CONFIGS, tiny_folder, tiny_model

from trimtab.engine.loading import LoadedModel
from trimtab.engine.rewards import Pair
from trimtab.training.errors import TrainingError
from trimtab.training.lora import Adapted
from trimtab.training.options import Lora
from trimtab.training.rows import Row

ROWS = [Row([5, 9, 2, 7, 1], 3), Row([4, 4, 8], 1), Row([6, 2, 256], 2), Row([3, 1], 2)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "base")


def opened(model: Any) -> LoadedModel:
    return LoadedModel(model, None, "tiny", "", model.dtype, 256, frozenset({256}))  # type: ignore[arg-type]


def stirred(adapted: Adapted) -> Adapted:
    """With factors that change something: a fresh adapter is zero."""
    generator = torch.Generator().manual_seed(1)
    for value in adapted.parameters.values():
        value.data = 0.3 * torch.randn(value.shape, generator=generator)
    return adapted


# Heads that divide, cap or transpose: what is gathered goes through the model's own forward.
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "granite"])
def test_logprobs_are_those_of_the_whole_text(architecture: str) -> None:
    adapted = stirred(Adapted(opened(tiny_model(architecture)), Lora(rank=2), 0))
    got, mask = adapted.logprobs(ROWS)
    assert mask.tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    for index, row in enumerate(ROWS):
        logits = adapted.loaded.model(torch.tensor([row.ids])).logits[0].log_softmax(dim=-1)
        wanted = torch.zeros(5)
        for place in range(row.start, len(row.ids)):
            wanted[place] = logits[place - 1, row.ids[place]]
        torch.testing.assert_close(got[index], wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(adapted.sums(ROWS, 2), got.sum(dim=1), atol=1e-4, rtol=1e-4)


def test_plain_is_the_base() -> None:
    model = tiny_model("llama")
    before = model(torch.tensor([ROWS[0].ids])).logits
    adapted = stirred(Adapted(opened(model), Lora(rank=2), 0))
    with adapted.plain():
        assert torch.equal(model(torch.tensor([ROWS[0].ids])).logits, before)
    assert not torch.allclose(model(torch.tensor([ROWS[0].ids])).logits, before)


def test_a_base_with_dropout_is_read_without() -> None:
    adapted = stirred(Adapted(opened(tiny_model("gpt2")), Lora(rank=2), 0))  # its dropout is 0.1
    assert torch.equal(adapted.sums(ROWS, 4), adapted.sums(ROWS, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_adapter_is_float32_over_a_base_of_any_dtype(dtype: torch.dtype) -> None:
    adapted = Adapted(opened(tiny_model("llama", dtype=dtype)), Lora(rank=2), 0)
    assert {value.dtype for value in adapted.parameters.values()} == {torch.float32}
    logprobs, _ = adapted.logprobs(ROWS)
    assert logprobs.dtype == torch.float32
    logprobs.sum().backward()
    assert all(value.grad is not None for value in adapted.parameters.values())
    hidden, _ = adapted.hidden([row.ids for row in ROWS])
    assert hidden.dtype == torch.float32


def test_padding_changes_nothing() -> None:
    adapted = stirred(Adapted(opened(tiny_model("llama")), Lora(rank=2), 0))
    together, mask = adapted.hidden([row.ids for row in ROWS])
    for index, row in enumerate(ROWS):
        alone, _ = adapted.hidden([row.ids])
        torch.testing.assert_close(together[index][mask[index].bool()], alone[0], atol=1e-5, rtol=1e-4)


ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("options", "layers", "modules"),
    [
        ({}, "012", ALL),
        ({"layers": "2"}, "2", ALL),
        ({"layers": "0-1"}, "01", ALL),
        ({"modules": "v_proj,down_proj"}, "012", {"v_proj", "down_proj"}),
        ({"modules": "o_proj", "layers": "1"}, "1", {"o_proj"}),
    ],
)
def test_layers_and_modules_choose(options: dict[str, str], layers: str, modules: set[str]) -> None:
    names = Adapted(opened(tiny_model("llama")), Lora.model_validate(options), 0).parameters
    parts = {part for name in names for part in name.split(".")}
    assert {part for part in parts if part.isdigit()} == set(layers)
    assert parts & ALL == modules


@pytest.mark.parametrize("layers", ["3", "2-1", "a-b", "0-3", "-1", ""])
def test_layers_that_are_not_there(layers: str) -> None:
    with pytest.raises(TrainingError, match="write them as 0-2"):
        Adapted(opened(tiny_model("llama")), Lora(layers=layers), 0)


def test_modules_that_are_not_there() -> None:
    with pytest.raises(TrainingError, match="no linear layer is called 'lm_head': choose from down_proj, gate_proj"):
        Adapted(opened(tiny_model("llama")), Lora(modules="q_proj,lm_head"), 0)


@pytest.mark.parametrize("change", [{"rank": 3}, {"alpha": 32}, {"modules": "v_proj"}, {"layers": "2"}])
def test_every_option_changes_the_result(base: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    out = base.parent / "plain"
    if not out.exists():
        KINDS["sft"].run(base, out)
    KINDS["sft"].run(base, tmp_path / "changed", lora=change)
    assert weights(tmp_path / "changed") != weights(out)


class Watched:
    """Remembers the adapter that a run saves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.head = torch.zeros(1)
        save = Adapted.save

        def watching(adapted: Adapted, folder: Path, *, task: Any, head: Any = None) -> None:
            self.adapted, self.head = adapted, head
            save(adapted, folder, task=task, head=head)

        monkeypatch.setattr(Adapted, "save", watching)


@pytest.mark.parametrize("kind", ["arm", "sft", "dpo"])
def test_a_writer_loads_as_a_guide_of_the_same_law(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    watched = Watched(monkeypatch)
    KINDS[kind].run(base, tmp_path / "out", schedule={"lr": 3e-2})
    with load(base, {"guide": {"role": "lm", "model": str(tmp_path / "out")}}) as llm:
        result = chat(llm, {"strategy": "dera", "aligned": "guide", "lam": 1.0, "trace": "tokens"}, DRAWN)
        prompt = answer_prompt(llm)
    trace = result.choices[0].trace
    assert trace is not None
    with watched.adapted.plain():
        plain = watched.adapted.logprobs([Row([*prompt, *ids(result)], len(prompt))])[0][0, len(prompt) :]
    trained = watched.adapted.logprobs([Row([*prompt, *ids(result)], len(prompt))])[0][0, len(prompt) :]
    assert [token.logprob_base for token in trace] == pytest.approx(plain.tolist(), abs=1e-4)
    assert [token.logprob_steered for token in trace] == pytest.approx(trained.tolist(), abs=2e-2)  # float16
    assert (trained - plain).abs().max() > 0.2


def answer_prompt(llm: Any) -> list[int]:
    return llm.vocabulary.chat([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("kind", ["ratings", "preferences"])
def test_a_reward_loads_as_a_guide_of_the_same_scores(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    watched = Watched(monkeypatch)
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[-1].content }}")
    KINDS[kind].run(base, tmp_path / "out", chat_template=template, schedule={"lr": 3e-2})
    texts = ["it is good9", "it is bad9", "neither"]
    with load(base, {"guide": {"role": "reward", "model": str(tmp_path / "out")}}) as llm:
        told = llm.score("guide", [Pair(({"role": "user", "content": "Hi"},), text) for text in texts])
        rows = [llm.vocabulary.encode(text) for text in texts]
    with torch.no_grad():
        hidden, mask = watched.adapted.hidden(rows)
    wanted = hidden[torch.arange(3), mask.sum(dim=1) - 1] @ watched.head[0]
    assert told == pytest.approx(wanted.tolist(), abs=2e-2)
    assert max(told) - min(told) > 0.2


def test_saved_factors_are_float16_and_nothing_else_is_saved(base: Path, tmp_path: Path) -> None:
    KINDS["sft"].run(base, tmp_path / "out")
    saved = tensors(tmp_path / "out")
    layers, projections = CONFIGS["llama"]["num_hidden_layers"], 7
    assert len(saved) == layers * projections * 2  # type: ignore[operator]
    assert {value.dtype for value in saved.values()} == {torch.float16}
