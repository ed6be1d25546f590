"""What the plugin refuses: requests at admission, and modes of vLLM at its start."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import adapter_folder
from tiny import tiny_folder
from vllm_runner import Two, Update, config, params

from trimtab.vllm import processor as plugin
from trimtab.vllm.processor import TrimtabProcessor, _catalogue

CPU = torch.device("cpu")
Make = Callable[..., TrimtabProcessor]


def refusal(extra: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        TrimtabProcessor.validate_params(params(extra, **changes))
    return str(caught.value)


ARM = {"strategy": "genarm", "arm": "arm"}


@pytest.mark.parametrize(
    ("decoding", "told"),
    [
        ({"strategy": "best_of_n", "n": 4, "reward": "brief"}, "decoding.strategy: strategy 'best_of_n' searches"),
        ({"strategy": "urial"}, "decoding.strategy: strategy 'urial'"),
        ({"strategy": "control_vector", "vector": "calm"}, "decoding.vector: control vectors change hidden states"),
        ({"strategy": "re_control", "value": "state", "lr": 1.0}, "decoding.value: vLLM keeps hidden states"),
        ({"strategy": "cd", "value": "tokens"}, "decoding.value: value heads read hidden states"),
        ({"strategy": "args", "reward": "brief"}, "decoding.reward: values of candidates are not read"),
        ({"strategy": "nudging", "aligned": "arm"}, "decoding.aligned: two models cannot take turns"),
        ({"strategy": "wsd", "aligned": "arm"}, "decoding.aligned: two models cannot take turns"),
        ({"strategy": "cfg", "gamma": 2.0}, "decoding.negative_prompt: vLLM runs the base once"),
        ({"strategy": "pad", "arm": "arm", "preference": "kind"}, "decoding.preference: preferences are read"),
        ({"strategy": "genarm", "arm": "brief"}, "decoding.arm: guide 'brief' does not run inside vLLM: it has the"),
        ({"strategy": "genarm", "arm": "amr"}, "decoding.arm: no guide is named 'amr'; this needs a language model"),
        ({"strategy": "genarm", "arms": {"arm": "strong"}}, "decoding.arms.arm"),
        ({"strategy": "genarm", "arm": "arm", "aplha": 1.0}, "decoding.aplha: unknown decoding key 'aplha'"),
        ({"strategy": "gnarm"}, "decoding.strategy: unknown strategy 'gnarm': did you mean 'genarm'?"),
        ({**ARM, "prompt": [{"method": "urial"}]}, "decoding.prompt: vLLM's template has made tokens"),
        ({**ARM, "trace": "tokens"}, "decoding.trace: vLLM's answers have no room"),
        ({**ARM, "select": {"rule": "abstain"}}, "decoding.select: vLLM returns each choice"),
        ({**ARM, "budget": {"max_tokens": 3}}, "decoding.budget: vLLM has max_tokens"),
        ({**ARM, "preference": {"weights": {}}}, "decoding.preference: preferences are read from"),
        ({**ARM, "steer": [{"method": "value", "guide": "arm"}]}, "decoding.steer.0.guide: values of candidates"),
        ({**ARM, "steer": [{"method": "mod", "weights": {"arm": 1.0}, "alpha": 1.0}]}, "decoding.steer.0.alpha"),
        ([1], "vllm_xargs.trimtab is an object as JSON"),
    ],
)  # fmt: skip
def test_decoding_is_refused_by_name(configured: Path, decoding: Any, told: str) -> None:
    assert refusal({"trimtab": json.dumps(decoding)}).startswith(told)


@pytest.mark.parametrize(
    ("extra", "changes", "told"),
    [
        ({"trimtab": "{"}, {}, "vllm_xargs.trimtab is not JSON"),
        ({"trimtab": "[" * 100_000}, {}, "vllm_xargs.trimtab is not JSON"),
        ({"trimtab": ARM}, {}, "vllm_xargs.trimtab: Input should be a valid string"),
        ({"trimtab_repetition_penalty": 0.0}, {}, "vllm_xargs.trimtab_repetition_penalty: Input should be greater"),
        ({"trimtab": ""}, {}, "vllm_xargs.trimtab is not JSON"),
        ({"trimtab_abstain_within": 3}, {}, "vllm_xargs.trimtab_abstain_within bounds trimtab_abstain_below"),
        ({"trimtab_presence_penalty": True}, {}, "vllm_xargs.trimtab_presence_penalty: Input should be a valid number"),
        ({"trimtab_abstain_below": "0.5"}, {}, "vllm_xargs.trimtab_abstain_below: Input should be a valid number"),
        ({"trimtab_abstain_below": 1.5}, {}, "vllm_xargs.trimtab_abstain_below: Input should be less"),
        ({"trimtab_abstian_below": 0.5}, {}, "vllm_xargs.trimtab_abstian_below: unknown argument"),
        ({"trimtab": json.dumps(ARM)}, {"presence_penalty": 1.0}, "presence_penalty: one of vLLM's model runners"),
        ({"trimtab_abstain_below": 0.5}, {"ignore_eos": True}, "ignore_eos forbids the end of text"),
        ({"trimtab_abstain_below": 0.5}, {"min_tokens": 2}, "min_tokens forbids the end of text"),
    ],
)
def test_arguments_are_refused_by_name(configured: Path, extra: Any, changes: dict[str, Any], told: str) -> None:
    assert refusal(extra, **changes).startswith(told)


def test_what_it_can_do_is_taken(configured: Path) -> None:
    for decoding in (
        ARM,
        {"strategy": "mod", "weights": {"base": 0.5, "arm": 0.5}, "alpha": 1.0},
        {"strategy": "contrastive", "amateur": "arm", "amateur_sees_prompt": False},
        {"strategy": "candidates", "top_k": 4},
    ):
        TrimtabProcessor.validate_params(params({"trimtab": json.dumps(decoding)}))
    TrimtabProcessor.validate_params(params({"trimtab_abstain_below": 1, "trimtab_abstain_within": 0}))
    TrimtabProcessor.validate_params(params({"other": "plugin's"}, presence_penalty=1.0))
    TrimtabProcessor.validate_params(params(None))


def test_a_guide_of_other_tokens_is_refused(configure: Callable[..., Path]) -> None:
    place = configure()
    configure(model=str(place / "foreign"), guides={"arm": {"role": "lm", "model": str(place / "arm")}})
    told = refusal({"trimtab": json.dumps(ARM)})
    assert told.startswith("decoding.arm: guide 'arm' does not run inside vLLM: its tokens are not those")


def test_an_adapter_is_no_guide_here(configure: Callable[..., Path], tmp_path: Path) -> None:
    place = configure()
    adapter_folder(tmp_path / "tune", place / "base", seed=3)
    configure(guides={"tune": {"role": "lm", "model": str(tmp_path / "tune")}})
    assert "it is an adapter of the base" in refusal({"trimtab": '{"strategy": "genarm", "arm": "tune"}'})


def test_without_a_configuration_it_sleeps(configured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIMTAB_VLLM_CONFIG")
    _catalogue.cache_clear()
    extra = {"trimtab_repetition_penalty": 2.0}
    assert "start it with TRIMTAB_VLLM_CONFIG=FILE" in refusal(extra)
    TrimtabProcessor.validate_params(params({"other": 1}))
    processor = TrimtabProcessor(config("nowhere", scheduler_config__async_scheduling=True), CPU)
    logits = torch.ones(1, 272)
    processor.update_state(Update(added=[(0, params(extra), [1], [])]))
    assert torch.equal(processor.apply(logits.clone()), logits)
    assert not Two(lambda states: TrimtabProcessor(config("nowhere"), states)).add(0, params(extra), [1])


def test_admission_reads_the_file_at_the_first_request_of_all(configure: Callable[..., Path]) -> None:
    configure()
    TrimtabProcessor.validate_params(params({"other": 1}))
    assert _catalogue.cache_info().currsize == 1, "not read, though a request has come"


def test_a_file_that_cannot_be_read_is_tried_once_for_strangers(
    configured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def broken() -> None:
        tried.append(1)
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(plugin, "_catalogue", broken)
    for _ in range(3):
        TrimtabProcessor.validate_params(params({"other": 1}))
    assert len(tried) == 1


def test_what_admission_took_by_another_file_is_left_to_vllm(
    configure: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The worker has started without guides; then the file changes, and admission reads the new one."""
    place = configure(guides={})
    worker = TrimtabProcessor(config(str(place / "base")), CPU)
    runner = Two(lambda states: TrimtabProcessor(config(str(place / "base")), states))
    configure()
    wanted, ours = params({"trimtab": json.dumps(ARM)}), params({"trimtab_repetition_penalty": 2.0})
    TrimtabProcessor.validate_params(wanted)
    worker.update_state(Update(added=[(i, each, [1], []) for i, each in enumerate((wanted, ours, wanted))]))
    found = worker.apply(torch.ones(3, 272))
    assert torch.equal(found[::2], torch.ones(2, 272))
    assert not torch.equal(found[1], torch.ones(272))
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "'arm'" in record.getMessage()
    assert "restart vLLM" in record.getMessage()
    assert not runner.add(0, wanted, [1])
    assert torch.equal(runner.step([0], torch.ones(1, 272)), torch.ones(1, 272))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scheduler_config__async_scheduling": True}, "--no-async-scheduling"),
        ({"speculative_config": object()}, "without speculative decoding"),
        ({"model_config__enable_prompt_embeds": True}, "without --enable-prompt-embeds"),
        ({"model_config__max_model_len": 300}, "guide '.*' .role lm.: it reads 256 tokens.*--max-model-len 256"),
    ],
)
def test_modes_of_vllm_are_refused_at_the_start(configured: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrimtabProcessor(config(str(configured / "base"), **changes), CPU)


def test_a_pool_that_cannot_hold_one_request_is_refused(configure: Callable[..., Path]) -> None:
    place = configure(pool_tokens=64)
    with pytest.raises(ValueError, match=r"it reads 64 tokens and vLLM serves requests of up to 96: raise its pool"):
        TrimtabProcessor(config(str(place / "base")), CPU)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_frequencies_that_depend_on_the_batch_are_refused(
    configure: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    """One kind of layers is enough."""
    place = configure()
    folder = tiny_folder(tmp_path / "long", architecture)
    told = json.loads((folder / "config.json").read_text())
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    kinds = {"full_attention": dynamic, "sliding_attention": plain}
    told["rope_parameters"] = dynamic if architecture == "llama" else kinds
    (folder / "config.json").write_text(json.dumps(told))
    configure(guides={"long": {"role": "lm", "model": str(folder), "pool_tokens": 1024}})
    with pytest.raises(ValueError, match=r"guide 'long' .*its rope_type is 'dynamic'.*take a guide with fixed ones"):
        TrimtabProcessor(config(str(place / "base")), CPU)


def test_another_base_than_the_configured_one_is_refused(configured: Path) -> None:
    with pytest.raises(ValueError, match=r"engine.model in TRIMTAB_VLLM_CONFIG is not that"):
        TrimtabProcessor(config(str(configured / "foreign")), CPU)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        ("[1]", "has no section `engine`"),
        ("engine: {model: demo}", "lacks engine.guides"),
        ("engine: {model: demo, guides: {}, colour: red}", "engine.colour"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, told: str) -> None:
    file = tmp_path / "wrong.yaml"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("TRIMTAB_VLLM_CONFIG", str(file))
    _catalogue.cache_clear()
    assert told in refusal({"trimtab": "{}"})
    with pytest.raises(ValueError, match=r"TRIMTAB_VLLM_CONFIG"):
        TrimtabProcessor(config("base"), CPU)


def test_placeholders_are_refused_at_run_time(bare: Make) -> None:
    processor, output = bare(CPU), [3]
    processor.update_state(Update(added=[(0, params({"trimtab_repetition_penalty": 2.0}), [1], output)]))
    processor.apply(torch.zeros(1, 272))
    output.append(-1)
    with pytest.raises(RuntimeError, match=r"placeholders.*--no-async-scheduling"):
        processor.apply(torch.zeros(1, 272))


def test_rows_of_drafts_are_refused(bare: Make) -> None:
    runner = Two(bare)
    runner.add(0, params({"trimtab_repetition_penalty": 2.0}), [1])
    with pytest.raises(RuntimeError, match=r"speculative decoding"):
        runner.step([0], torch.zeros(2, 272))
