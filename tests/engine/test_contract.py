import logging
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from trimtab.engine.guides.heads import LinearHead
from trimtab.engine.loading import LoadedModel
from trimtab.engine.model import Model
from trimtab.engine.pages import PagePool
from trimtab.engine.plan import PLAIN, Variant
from trimtab.engine.rewards import Pair
from trimtab.engine.rewards.causal import CausalReward
from trimtab.engine.rewards.classifier import ClassifierReward, Side
from trimtab.engine.rewards.contract import PAIRS, Contract, Finding, ModelReward, examine
from trimtab.engine.runner import ModelRunner
from trimtab.engine.vocabulary import Message, Vocabulary

CONTEXT, BOS, EOS = 256, 256, 257
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
TEMPLATE = "{{ bos_token }}" + TURNS
POINTS = ["chat template", "BOS", "scores", "batches", "padding", "truncation"]


def tokenizer_of(
    template: str | None = TEMPLATE, *, adds: str = "<s> $A", pad: str | None = "</s>"
) -> PreTrainedTokenizerFast:
    """A token per byte; `adds` is what the tokenizer puts around plain text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: id_ for id_, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<s>", "</s>", "<pad>"])
    backend.post_processor = processors.TemplateProcessing(single=adds, special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token=pad, chat_template=template
    )


class Heedless(BertForSequenceClassification):
    """It attends to its padding."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return super().forward(input_ids=input_ids)


class Counting(GPT2Model):
    """Its positions count the padding."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        return super().forward(input_ids, attention_mask=attention_mask, use_cache=use_cache)


def tiny(kind: str = "llama") -> PreTrainedModel:
    """A one-label classifier whose scores differ."""
    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": 259, "num_labels": 1, "pad_token_id": EOS, "eos_token_id": EOS}
    wide = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model: PreTrainedModel
    match kind:
        case "llama":
            model = LlamaForSequenceClassification(LlamaConfig(**common, **wide, max_position_embeddings=CONTEXT))
        case "bert" | "heedless":
            classifier = BertForSequenceClassification if kind == "bert" else Heedless
            model = classifier(BertConfig(**common, **wide, max_position_embeddings=CONTEXT))
        case _:
            sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
            model = GPT2ForSequenceClassification(GPT2Config(**common, **sizes, bos_token_id=BOS))
            if kind == "counting":
                model.transformer = Counting(model.config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval().requires_grad_(False)


def whole(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    context: int = CONTEXT,
    max_batch_tokens: int = 16_384,
) -> ClassifierReward:
    """The reward of a classifier whose forward reads padded rows."""
    loaded = LoadedModel(model, tokenizer or tokenizer_of(), "tiny", "", model.dtype, context, frozenset({EOS}))
    return ClassifierReward("taste", loaded, max_batch_tokens=max_batch_tokens)


def paged(variant: Variant = PLAIN) -> CausalReward:
    """The reward of a decoder through pages."""
    model = tiny()
    runner = ModelRunner(model.base_model, PagePool(201, 8))
    read_by = Model("taste", runner, Vocabulary(tokenizer_of()), CONTEXT, frozenset({EOS}), b"salt")
    return CausalReward("taste", read_by, LinearHead.of(torch.ones(1), model.score.weight), variant=variant)


def found(contract: Contract, name: str) -> Finding:
    return next(each for each in contract.findings if each.name == name)


def only_problem(reward: ModelReward) -> Finding:
    contract = examine(reward)
    assert not contract.ok
    (problem,) = (each for each in contract.findings if not each.ok)
    return problem


def words(finding: Finding) -> str:
    return f"{finding.name}: {finding.finding} -> {finding.fix}"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "paged"])
def test_a_sound_reward_keeps_its_contract(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    contract = examine(paged() if kind == "paged" else whole(tiny(kind)))
    assert contract.ok
    assert [each.name for each in contract.findings] == POINTS
    assert not any(each.fix for each in contract.findings)
    assert found(contract, "BOS").finding == "<s> once"
    assert found(contract, "batches").finding.startswith("the same scores at batch 1, 2 and 7")
    assert found(contract, "truncation").finding.endswith("cut to 256 tokens, the end of the answer behind <s>")
    told = {
        "paged": "none: every answer has pages of its own",
        "bert": "padded right with EOS (</s>), told apart by length; never left, since it is read at its first token",
    }
    padding = "padded right with EOS (</s>), told apart by length; the same scores when padded left"
    assert found(contract, "padding").finding.startswith(told.get(kind, padding))
    assert not caplog.records


@pytest.mark.parametrize(
    ("pad", "told"), [("<pad>", "padded right; the same"), (None, "with a masked id, for want of a pad token")]
)
def test_the_pad_token_is_told(pad: str | None, told: str) -> None:
    assert told in found(examine(whole(tiny(), tokenizer_of(pad=pad))), "padding").finding


def test_the_chat_template() -> None:
    absent = examine(whole(tiny(), tokenizer_of(None)))
    assert absent.ok
    assert "a message is a line -> give it the template" in words(found(absent, "chat template"))
    deaf = "{{ bos_token }}{{ messages[0].content }}"
    assert "it leaves the answer out -> let it write" in words(
        found(examine(whole(tiny(), tokenizer_of(deaf))), "chat template")
    )
    strict = examine(whole(tiny(), tokenizer_of("{{ raise_exception('roles must please me') }}")))
    assert [each.name for each in strict.findings] == ["chat template"]
    assert "roles must please me -> let it take a question" in words(strict.findings[0])


@pytest.mark.parametrize(
    ("template", "adds", "ok", "told"),
    [
        ("{{ bos_token }}" + TEMPLATE, "<s> $A", False, "begins with <s> twice -> take one out of its chat template"),
        (None, "<s> <s> $A", False, "begins with <s> twice -> set add_bos_token to false"),
        (TURNS, "<s> $A", True, "plain text would begin with <s> -> let its chat template begin with <s>"),
        (TURNS, "$A", True, "BOS: none -> "),
        (TEMPLATE, "$A", True, "BOS: <s> once -> "),
        ("{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}", "$A", True, "<s> once -> "),
    ],
)
def test_one_bos_or_none(template: str | None, adds: str, ok: bool, told: str) -> None:
    beginning = found(examine(whole(tiny(), tokenizer_of(template, adds=adds))), "BOS")
    assert beginning.ok is ok
    assert told in words(beginning)


def test_attention_to_padding_is_found_and_its_fix_helps() -> None:
    problem = only_problem(whole(tiny("heedless")))
    assert words(problem).startswith("batches: scores differ by ")
    assert "between batch 1, 2 and 7 -> set max_batch_tokens to 1" in words(problem)
    assert examine(whole(tiny("heedless"), max_batch_tokens=1)).ok


def test_differences_that_only_the_dtype_allows_are_told() -> None:
    batches = found(examine(whole(tiny("heedless").bfloat16())), "batches")
    assert batches.ok
    assert "which is much: the seven span 0.0" in batches.finding
    assert batches.fix == "load it with dtype float32"


def test_positions_that_count_padding_are_found() -> None:
    problem = only_problem(whole(tiny("counting")))
    assert problem.name == "padding"
    assert "padded left, scores differ by " in problem.finding
    assert problem.fix.startswith("set max_batch_tokens to 1")


@pytest.mark.parametrize(
    ("dtype", "off", "ok"),
    [
        (torch.float32, 5e-5, True),
        (torch.float32, 5e-4, False),
        (torch.float16, 5e-3, True),
        (torch.float16, 0.03, False),
        (torch.bfloat16, 0.03, True),
        (torch.bfloat16, 0.2, False),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_what_rounding_may_change_depends_on_the_dtype(
    dtype: torch.dtype, off: float, ok: bool, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded(pairs: list[Pair]) -> list[float]:
        return [scale * (len(pair.answer) / 100 + off * (len(pairs) == 2)) for pair in pairs]

    reward = paged(Variant(adapter="taste"))
    reward.dtype = dtype
    monkeypatch.setattr(reward, "score", rounded)
    batches = found(examine(reward), "batches")
    assert batches.ok is ok
    if not ok:
        fix = "set max_batch_tokens to 1" if dtype == torch.float32 else "serve the base with dtype float32"
        assert batches.fix.startswith(fix)


def test_a_head_that_was_never_trained() -> None:
    model = tiny()
    model.score.weight.zero_()
    assert words(only_problem(whole(model))) == (
        "scores: seven different answers all score 0 -> "
        "train its head, or name the checkpoint that holds the trained one"
    )


@pytest.mark.parametrize(
    ("dtype", "weight", "fix"),
    [
        (torch.float32, float("nan"), "its weights hold NaN or infinity"),
        (torch.float16, 6e4, "load it with dtype bfloat16 or float32"),
    ],
)
def test_scores_that_are_not_finite(dtype: torch.dtype, weight: float, fix: str) -> None:
    model = tiny().to(dtype)
    model.score.weight.fill_(weight)
    problem = only_problem(whole(model))
    assert words(problem).startswith(f"scores: a score is not finite -> {fix}")


def test_truncation_keeps_the_end_and_reads_the_whole_context() -> None:
    short = "{{ bos_token }}{% for m in messages %}{{ m.content[:900] }}\n{% endfor %}"
    problem = only_problem(whole(tiny(), tokenizer_of(short)))
    assert words(problem) == (
        "truncation: beyond 256 tokens the end of an answer is lost -> let its chat template keep the end"
    )
    problem = only_problem(whole(tiny("bert"), context=CONTEXT + 1))
    assert problem.finding.startswith("it cannot read the 257 tokens of its context (")
    assert problem.fix.startswith("lower max_position_embeddings")


def test_what_a_model_raises_is_told_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(pairs: object) -> None:
        raise RuntimeError("no such kernel")

    reward = whole(tiny())
    monkeypatch.setattr(reward, "score", broken)
    with caplog.at_level(logging.WARNING):
        contract = examine(reward)
    assert [each.name for each in contract.findings] == POINTS[:3]
    assert contract.findings[-1] == Finding("scores", False, "RuntimeError: no such kernel", "see the log for where")
    assert caplog.messages == [
        "guide 'taste': the examination of its scores failed",
        "guide 'taste': scores: RuntimeError: no such kernel -> see the log for where",
    ]


def test_nothing_is_left_in_the_pages() -> None:
    reward = paged()
    pool = reward.pool
    assert examine(reward).ok
    pool.check([])
    assert (pool.cached, pool.used, pool.forks) == (0, 0, 0)
    reward.score(PAIRS[:1])
    assert pool.cached > 0  # prefixes are shared again


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("pad", ["</s>", "<pad>", None])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_scores_are_those_of_plain_forwards(kind: str, pad: str | None, side: Side) -> None:
    """Answers that end with EOS, which is the pad token as well, are the trap."""
    model = tiny(kind)
    reward = whole(model, tokenizer_of(pad=pad))
    asked = (Message(role="user", content="Hi"),)
    pairs = [Pair(asked, answer) for answer in ("Hello there, friend</s></s>", "No</s>", "")]
    alone = []
    for pair in pairs:
        ids = torch.tensor([reward.encode(pair)])
        positions = torch.arange(ids.shape[1])[None]
        hidden = model.base_model(input_ids=ids, position_ids=positions).last_hidden_state[0, -1]
        alone.append(model.score(hidden).item())
    assert len({round(score, 3) for score in alone}) == len(pairs)
    assert reward.padded(pairs, side) == pytest.approx(alone, abs=1e-4)
