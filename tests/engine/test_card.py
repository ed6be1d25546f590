"""Cards of guides: what identifies a base, what is written, what is refused."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny import tiny_model

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.guides.card import BaseIdentity, Card, identity
from trimtab.engine.pages import PagePool
from trimtab.engine.runner import ModelRunner

BASE = BaseIdentity(source="demo", config="0123456789abcdef", weights="fedcba9876543210")
CARD = Card(
    kind="value",
    base=BASE,
    data="rollouts of 300 prompts",
    licence="MIT",
    policy="plain sampling of the base",
    metrics={"spearman": 0.5},
    training={"seed": 7, "rates": [0.1, 0.2]},
    version="0.1.0",
)


def test_a_saved_card_is_loaded_again(tmp_path: Path) -> None:
    assert Card.load(tmp_path) is None
    CARD.save(tmp_path)
    assert Card.load(tmp_path) == CARD
    assert json.loads((tmp_path / "card.json").read_text())["base"] == {
        "source": "demo",
        "config": "0123456789abcdef",
        "weights": "fedcba9876543210",
    }


@pytest.mark.parametrize("change", [{"metrics": {"loss": float("nan")}}, {"kind": "oracle"}, {"more": 1}])
def test_a_card_says_nothing_but_what_it_may(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Card.model_validate(CARD.model_dump() | change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"\(the file: Invalid JSON"),
        (json.dumps(CARD.model_dump() | {"format": 2}), r"\(format: Input should be 1\)"),
        (json.dumps({**CARD.model_dump(), "base": {"source": "demo"}}), r"\(base\.config: Field required\)"),
        (json.dumps({**CARD.model_dump(), "base": {**BASE.model_dump(), "weights": "short"}}), r"\(base\.weights: "),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ModelLoadError, match=message) as caught:
        Card.load(tmp_path)
    assert str(tmp_path / "card.json") in str(caught.value)
    (tmp_path / "card.json").write_bytes(b"\xff")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        Card.load(tmp_path)


def test_another_base_is_refused_and_other_weights_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        CARD.check(BASE.model_copy(update={"source": "./demo-copy"}), "worth")
    assert not caplog.records
    CARD.check(BASE.model_copy(update={"weights": "0" * 16}), "worth")
    (record,) = caplog.records
    assert record.getMessage() == (
        "guide 'worth' was trained for the base 'demo' (config 0123456789abcdef, weights fedcba9876543210) and this "
        "one, 'demo' (config 0123456789abcdef, weights 0000000000000000), has other weights: expect it to steer less "
        "well, or train it again for this base"
    )
    other = BaseIdentity(source="org/large", config="f" * 16, weights="f" * 16)
    with pytest.raises(ModelLoadError) as caught:
        CARD.check(other, "worth")
    assert str(caught.value) == (
        f"it was trained for the base {BASE} and this one is {other}: serve the base it was trained on, or train it "
        "again with trimtab train ... --base org/large"
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
def test_a_base_is_the_same_packed_and_paged(architecture: str) -> None:
    model = tiny_model(architecture)
    before = identity("x", model)
    runner = ModelRunner(model, PagePool(20, 16))
    assert identity("x", runner.model) == before
    other = identity("y", tiny_model(architecture, seed=1))
    assert (other.source, other.config) == ("y", before.config)
    assert other.weights != before.weights


def test_a_bfloat16_base_is_the_same_in_every_dtype() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    model.get_input_embeddings().weight[0, :3] = torch.tensor([1e-6, -3e-5, -0.0])  # float16 rounds the first
    expected = identity("x", model)
    assert identity("x", model.half().float()) == expected
    model = tiny_model("llama", dtype=torch.bfloat16).float()
    assert identity("x", model.double()) == identity("x", tiny_model("llama", dtype=torch.bfloat16))


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "num_key_value_heads", "tie_word_embeddings"])
def test_the_config_is_identified_by_its_shapes(name: str) -> None:
    model = tiny_model("llama")
    before = identity("x", model).config
    model.config.rms_norm_eps = 0.5  # changes no shape
    model.config.transformers_version = "0"
    assert identity("x", model).config == before
    setattr(model.config, name, 4 if name != "tie_word_embeddings" else True)
    assert identity("x", model).config != before


def scaled_norm(model: Any) -> None:
    model.model.norm.weight[0] = 2.0


def moved_row(model: Any) -> None:
    model.model.embed_tokens.weight[63, 0] += 1.0


@pytest.mark.parametrize("change", [scaled_norm, moved_row])
def test_the_weights_are_identified_by_norm_and_embedding(change: Callable[[Any], None]) -> None:
    model = tiny_model("llama")
    before = identity("x", model)
    change(model)
    assert identity("x", model).weights != before.weights
