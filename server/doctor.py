"""`trimtab doctor`: whether this machine can serve the model, and what to change if not."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trimtab.engine.errors import TrimtabError
from trimtab.server.serve import bind
from trimtab.server.settings import Settings

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
    yield _processor()
    yield _port(settings)
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


def _processor() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("processor", True, torch.cuda.get_device_name())
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


def _model(settings: Settings) -> Iterator[Check]:
    from trimtab.llm import LLM
    from trimtab.server.guide_checks import guide_checks

    name = settings.engine.model
    try:
        llm = LLM(settings=settings.engine)
    except TrimtabError as error:
        yield Check("model", False, f"{name}: {error}")
        return
    try:
        yield Check("model", True, f"{name} loads; context of {llm.context_length} tokens")
        chat = bool(llm.vocabulary.tokenizer.chat_template)
        fix = "" if chat else "use /v1/completions, or serve a chat model"
        yield Check("chat template", chat, "present" if chat else "the tokenizer has none", fix)
        yield from guide_checks(llm)
    finally:
        llm.close()
