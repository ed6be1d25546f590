"""`trimtab doctor`: whether this machine can serve the model, and what to change if not."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.engine.errors import TrimtabError
from trimtab.server.serve import bind
from trimtab.server.settings import InvalidSettings, Settings

if TYPE_CHECKING:
    import torch

    from trimtab.llm import LLM

PACKAGES = ("torch", "transformers", "fastapi", "uvicorn", "pydantic")


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `fix` says what to do about a problem."""

    name: str
    ok: bool
    finding: str
    fix: str = ""

    @property
    def line(self) -> str:
        """As it is printed."""
        mark = "ok     " if self.ok else "problem"
        return f"{mark}  {self.name}: {self.finding}" + (f" -> {self.fix}" if self.fix else "")


def examine(settings: Settings) -> Iterator[Check]:
    """Every check, cheap ones first; loads the model and unloads it again."""
    yield _versions()
    yield from _processor(settings)
    yield _port(settings)
    yield from _telemetry(settings)
    yield from _model(settings)


def _versions() -> Check:
    found, missing = [f"python {platform.python_version()}"], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    fix = f"pip install {' '.join(missing)}" if missing else ""
    return Check("versions", not missing, ", ".join(found), fix)


def _processor(settings: Settings) -> Iterator[Check]:
    from trimtab.engine.device import find_device

    try:
        device = find_device(settings.engine.device)
    except TrimtabError as error:
        yield Check("processor", False, str(error))
        return
    if device.type == "cpu":
        yield _cpu()
        yield Check("kernels", True, "plain torch, as always on a CPU")
    else:
        yield _gpu(device)
        yield _kernels(device)


def _gpu(device: "torch.device") -> Check:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device)
    return Check("processor", True, f"{name}, {free / 2**30:.1f} GiB of {total / 2**30:.1f} GiB free")


def _kernels(device: "torch.device") -> Check:
    """Whether a Triton kernel compiles, runs and agrees with torch."""
    import torch

    from trimtab.kernels.row_vectors import add_row_vectors

    try:
        found = f"triton {version('triton')}"
        hidden, sums = torch.ones(2, 1, 64, device=device), torch.arange(128.0, device=device).view(2, 64)
        index = torch.tensor([1, -1], dtype=torch.int32, device=device)
        expected = add_row_vectors(hidden.clone(), sums, index, backend="torch")
        agrees = torch.equal(add_row_vectors(hidden.clone(), sums, index, backend="triton"), expected)
    except Exception as error:  # a missing compiler, an old driver: whatever it is, it is what the reader needs
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return Check("kernels", False, f"no Triton kernel runs: {reason}", "install triton and a C compiler (gcc)")
    finding = "a kernel runs" if agrees else "a kernel gives wrong numbers"
    return Check("kernels", agrees, f"{found}, {finding}", "" if agrees else "install the triton that torch asks for")


def _cpu() -> Check:
    import torch

    flags = _cpu_flags()
    fast = sorted(flags & {"avx512_bf16", "amx_bf16", "avx512f", "avx2", "asimd", "bf16"})
    bf16 = bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
    finding = f"{torch.get_num_threads()} CPU threads, {' '.join(fast) or 'no vector instructions known'}"
    return Check("processor", True, finding + ("" if bf16 else "; bfloat16 is emulated, which is slower"))


def _cpu_flags() -> set[str]:
    """Instruction sets of a Linux machine; empty on others."""
    described = Path("/proc/cpuinfo")
    if not described.exists():
        return set()
    for line in described.read_text(encoding="utf-8").splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _port(settings: Settings) -> Check:
    where = f"{settings.server.host}:{settings.server.port}"
    try:
        bind(settings.server).close()
    except TrimtabError as error:
        return Check("port", False, str(error))
    return Check("port", True, f"{where} is free")


def _telemetry(settings: Settings) -> Iterator[Check]:
    """Whether traces can be sent, where they are asked for."""
    if not settings.server.telemetry:
        return
    from trimtab.server.telemetry import TelemetryUnavailable, check

    try:
        check()
    except TelemetryUnavailable as error:
        yield Check("telemetry", False, str(error))
    else:
        yield Check("telemetry", True, "traces have somewhere to go")


def _model(settings: Settings) -> Iterator[Check]:
    from trimtab.llm import LLM
    from trimtab.server.guide_checks import guide_checks
    from trimtab.server.remote_checks import remote_checks

    name = settings.engine.model
    try:
        llm = LLM(settings=settings.engine, attributes=settings.attributes)
    except TrimtabError as error:
        yield Check("model", False, f"{name}: {error}")
        return
    try:
        yield Check("model", True, f"{name} loads; context of {llm.context_length} tokens")
        yield from remote_checks(llm)
        yield from _memory(llm)
        chat = bool(llm.vocabulary.tokenizer.chat_template)
        fix = "" if chat else "use /v1/completions, or serve a chat model"
        yield Check("chat template", chat, "present" if chat else "the tokenizer has none", fix)
        yield from guide_checks(llm)
        yield from _rules(settings, llm)
    finally:
        llm.close()


def _rules(settings: Settings, llm: "LLM") -> Iterator[Check]:
    """Whether presets, policies and keys fit each other and the model."""
    from trimtab.server.rules import problems, profile

    llms = {llm.model_name: llm}
    try:
        found = list(problems(settings, llms, profile(settings.auto, llms)))
    except InvalidSettings as error:
        found = [str(error)]
    for problem in found:
        yield Check("rules", False, problem)
    if not found:
        counted = ((settings.presets, "presets"), (settings.policies, "policies"), (settings.keys, "keys"))
        told = ", ".join(f"{len(each)} {name}" for each, name in counted)
        yield Check("rules", True, told + ("" if settings.keys else ": everybody may call"))


def _memory(llm: "LLM") -> Iterator[Check]:
    """What the page pools take, and on a GPU how they were planned; a base that another server runs has none here."""
    stores = [model.runner.store for model in llm.models.values() if model.remote is None]
    if not stores:
        return
    tokens = stores[0].pool.total * stores[0].pool.page_size
    size = sum(store.nbytes for store in stores)
    planned = "" if llm.memory is None else f"; {llm.memory.line}"
    models = "" if len(stores) == 1 else f" in the pools of {len(stores)} models"
    yield Check("memory", True, f"{tokens:,} tokens of context take {size / 2**30:.2f} GiB{models}{planned}")
