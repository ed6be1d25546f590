"""Sections of the GPU benchmark about whole decode steps: the engine beside `generate`, and what memory allows.

Models have the shapes of well-known ones and random weights in bfloat16, so nothing is downloaded. The time of a step
is that of a long answer less that of a short one, over the tokens between.
"""

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import torch
from gpu_place import Place
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)

from trimtab import LLM, EngineSettings, SamplingParams

Row = dict[str, object]
Decode = Callable[[torch.Tensor, int], None]

VOCAB = 128_256
SHAPES = {
    "tiny": (64, 128, 2, 4, 2, 16),
    "135M": (576, 1536, 30, 9, 3, 64),
    "1B": (2048, 8192, 16, 32, 8, 64),
    "8B": (4096, 14336, 32, 32, 8, 128),
}
"""hidden size, intermediate size, layers, heads, key heads, size of a head"""
TIED = {"135M", "1B"}
BATCHES = (1, 8, 64, 256)
GENERATE_BATCHES = (1, 8)  # each is compiled anew
PROMPT, SHORT, LONG = 128, 4, 68


def decode_1b(place: Place) -> Iterator[Row]:
    """A base of Llama-3.2-1B's shape."""
    yield from _decode(place, "1B")


def decode_8b(place: Place) -> Iterator[Row]:
    """A base of Llama-3.1-8B's shape."""
    yield from _decode(place, "8B")


def _decode(place: Place, size: str) -> Iterator[Row]:
    shared = Path("/dev/shm")  # a folder in memory, if it has room for the weights
    roomy = shared.is_dir() and os.statvfs(shared).f_bavail * os.statvfs(shared).f_frsize > 40e9
    with tempfile.TemporaryDirectory(dir=shared if roomy and not place.dry else None) as folder:
        base, guide = Path(folder) / "base", Path(folder) / "guide"
        size, small = ("tiny", "tiny") if place.dry else (size, "135M")
        configs = _save(place, size, base), _save(place, small, guide)
        yield from _engine(place, size, configs, base, guide)
        _free(place)
        yield from _generate(place, size, base)


def llama(size: str) -> LlamaConfig:
    """The configuration of a shape."""
    hidden, intermediate, layers, heads, key_heads, head = SHAPES[size]
    return LlamaConfig(
        vocab_size=512 if size == "tiny" else VOCAB,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head,
        max_position_embeddings=4096,
        tie_word_embeddings=size in TIED,
        bos_token_id=0,
        eos_token_id=1,
    )


def _save(place: Place, size: str, folder: Path) -> LlamaConfig:
    """A model with random weights, and a tokenizer of single bytes, as any checkpoint folder."""
    config = llama(size)
    torch.manual_seed(0)
    with place.device:
        model = AutoModelForCausalLM.from_config(config, dtype=_dtype(place))
    model.save_pretrained(folder)
    alphabet = {"<s>": 0, "</s>": 1}
    alphabet |= {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=2)}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    del model
    _free(place)
    return config


def _engine(
    place: Place, size: str, configs: tuple[LlamaConfig, LlamaConfig], base: Path, guide: Path
) -> Iterator[Row]:
    batches, short, long, prompt = (2,), 2, 4, 8
    if not place.dry:
        batches, short, long, prompt = BATCHES, SHORT, LONG, PROMPT
    pool = max(batches) * (prompt + long + 32)
    settings = EngineSettings(
        model=str(base),
        chat_template="plain",
        dtype="float32" if place.dry else "bfloat16",
        device=place.device.type,
        prefix_cache=False,
        max_rows=max(batches),
        pool_tokens=pool,
        prefill_tokens=512 if place.dry else 4096,
        guides={"small": {"role": "lm", "model": str(guide), "pool_tokens": pool}},  # type: ignore[arg-type]
    )
    began = perf_counter()
    with LLM(settings=settings) as llm:
        yield {"model": size, "what": "load", "seconds": perf_counter() - began}
        middle = prompt + (short + long) // 2
        for name, decoding in (("plain", None), ("guided", {"strategy": "genarm", "arm": "small"})):
            for batch in batches:
                if place.left < 10:
                    return
                seconds = _step(place, _engine_run(llm, decoding), batch, prompt, short, long)
                read = sum(_bytes(each, batch, middle) for each in (configs if decoding else configs[:1]))
                yield {"model": size, "what": name, "batch": batch, **_times(seconds, batch), "bytes": read}


def _engine_run(llm: LLM, decoding: dict[str, str] | None) -> Decode:
    def run(prompts: torch.Tensor, tokens: int) -> None:
        sampling = SamplingParams(temperature=1.0, seed=1, max_tokens=tokens, ignore_eos=True)
        results = llm.generate(prompts.tolist(), sampling, decoding=decoding, progress=False)
        assert all(len(result.choices[0].token_ids) == tokens for result in results)

    return run


def _generate(place: Place, size: str, base: Path) -> Iterator[Row]:
    """transformers' `generate` with a static cache, whose decode step it compiles on a GPU."""
    batches, short, long, prompt = (2,), 2, 4, 8
    if not place.dry:
        batches, short, long, prompt = GENERATE_BATCHES, SHORT, LONG, PROMPT
    if place.left < 30:
        return
    model = AutoModelForCausalLM.from_pretrained(base, dtype=_dtype(place)).to(place.device).eval()
    model.generation_config.eos_token_id = None

    def run(prompts: torch.Tensor, tokens: int) -> None:
        # The cache is as long for a short answer as for a long one: another length would be compiled anew.
        config = GenerationConfig(
            max_new_tokens=long, do_sample=True, temperature=1.0, top_k=0, pad_token_id=0, cache_implementation="static"
        )
        stop = StoppingCriteriaList([_After(prompts.shape[1] + tokens)])
        given = prompts.to(place.device)
        out = model.generate(
            given, generation_config=config, attention_mask=torch.ones_like(given), stopping_criteria=stop
        )
        assert out.shape[1] == prompts.shape[1] + tokens

    for batch in batches:
        if place.left < 30:
            return
        seconds = _step(place, run, batch, prompt, short, long)
        yield {"model": size, "what": "generate", "batch": batch, **_times(seconds, batch)}


class _After(StoppingCriteria):  # type: ignore[misc]
    """Stops all sequences at a length."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        return torch.full(input_ids.shape[:1], input_ids.shape[1] >= self._length, device=input_ids.device)


def _step(place: Place, run: Decode, batch: int, prompt: int, short: int, long: int) -> float:
    """Seconds of one decode step, the best of two rounds; what is set up at first use is not counted."""
    prompts = torch.randint(2, 258, (batch, prompt), generator=torch.Generator().manual_seed(0))
    run(prompts, long)
    best = float("inf")
    for _ in range(1 if place.dry else 2):
        times = []
        for length in (short, long):
            place.synchronize()
            began = perf_counter()
            run(prompts, length)
            place.synchronize()
            times.append(perf_counter() - began)
        best = min(best, (times[1] - times[0]) / (long - short))
    return best


def _times(seconds: float, batch: int) -> Row:
    return {"ms/step": seconds * 1e3, "tokens/s": batch / seconds}


def _bytes(config: LlamaConfig, batch: int, context: int) -> int:
    """What a decode step has to read at least: every weight once, and the keys and values of all rows."""
    hidden, head = config.hidden_size, config.head_dim
    attention = hidden * head * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    layer = attention + 3 * hidden * config.intermediate_size + 2 * hidden
    weights = config.num_hidden_layers * layer + hidden + config.vocab_size * hidden  # of the embedding only rows
    kept = batch * context * config.num_hidden_layers * 2 * config.num_key_value_heads * head
    return 2 * (weights + kept)


def _dtype(place: Place) -> torch.dtype:
    return torch.float32 if place.dry else torch.bfloat16


def _free(place: Place) -> None:
    gc.collect()
    if not place.dry:
        torch.cuda.empty_cache()
