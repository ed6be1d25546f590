"""The command line as a user meets it: a process, its output and its exit code."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

TRIMTAB = [sys.executable, "-c", "from trimtab.server.cli import app; app()"]


def trimtab(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRIMTAB_")}
    return subprocess.run(
        [*TRIMTAB, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**clean, **environment, "COLUMNS": "200"},
    )


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import sys, trimtab.server.cli; sys.exit(sum(m in sys.modules for m in ('torch', 'fastapi', 'httpx2')))"
    began = time.perf_counter()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    imported = time.perf_counter() - began
    helped = trimtab("--help")
    assert helped.returncode == 0
    assert all(command in helped.stdout for command in ("serve", "chat", "strategies", "doctor"))
    assert imported < 2.0  # a quarter of a second on an idle machine; torch alone takes longer than this bound


def test_print_config_shows_what_would_be_used() -> None:
    printed = trimtab("serve", "--print-config", "--dtype", "float32", TRIMTAB_SERVER__PORT="4321")
    assert "port: 4321" in printed.stdout
    assert "dtype: float32" in printed.stdout
    assert printed.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--config", "/none.yaml"), "cannot read the configuration /none.yaml"),
        (("--port", "70000"), "server.port"),
        (("--model", "/no/such/folder"), "/no/such/folder"),
    ],
)
def test_serve_fails_with_one_clear_line(arguments: tuple[str, ...], words: str) -> None:
    failed = trimtab("serve", "--port", "0", *arguments, HF_HUB_OFFLINE="1")
    assert failed.returncode == 1
    (line,) = failed.stderr.strip().splitlines()
    assert line.startswith("trimtab: ")
    assert words in line


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_a_fastapi_beside_vllm_is_told(command: str) -> None:
    """It lacks what the server's modules import, too."""
    older = "import sys; from importlib import util; find = util.find_spec; sys.modules['fastapi.routing'] = None; "
    older += "util.find_spec = lambda name: None if name == 'fastapi.telemetry' else find(name); "
    process = [sys.executable, "-c", older + TRIMTAB[-1], command, "--port", "0", "--model", "/no/such/folder"]
    failed = subprocess.run(process, capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode == 1
    (line,) = failed.stderr.strip().splitlines()
    assert line.startswith("trimtab: the server needs FastAPI 0.165: pip install")


def test_a_corrupt_model_is_one_clear_line(model_folder: Path, tmp_path: Path) -> None:
    for file in model_folder.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    failed = trimtab("serve", "--port", "0", "--model", str(tmp_path))
    assert failed.returncode == 1
    (line,) = failed.stderr.strip().splitlines()
    assert line.startswith("trimtab: ")


def test_a_taken_port_is_told_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        began = time.perf_counter()
        failed = trimtab("serve", "--port", port, "--model", "/no/such/folder")
        assert time.perf_counter() - began < 10  # torch is imported, on a busy machine too; nothing is loaded
    assert failed.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in failed.stderr
    assert "--port" in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


def test_serve_answers_and_ends_on_sigterm(model_folder: Path) -> None:
    command = [*TRIMTAB, "serve", "--port", "0", "--model", str(model_folder), "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        url = lines[0].split()[-1]
        assert lines[3].split()[-1] == f"{url}/"
        assert f"curl {url}/v1/chat/completions" in lines[1]
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
        assert httpx2.post(url + "/v1/chat/completions", json=body, timeout=30).status_code == 200
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=20)
        assert process.returncode in (0, -signal.SIGTERM)
        assert "Traceback" not in rest


def test_strategies_in_three_forms() -> None:
    told = trimtab("strategies").stdout
    assert all(word in told for word in ("best_of_n", "weighted_vote", "deadline_ms"))
    assert trimtab("strategies", "--markdown").stdout.startswith("| strategy |")
    assert '"schema"' in trimtab("strategies", "--json").stdout


def test_doctor_finds_a_healthy_machine(model_folder: Path) -> None:
    told = trimtab("doctor", "--port", "0", "--model", str(model_folder))
    assert told.returncode == 0, told.stdout
    assert all(line.startswith("ok ") for line in told.stdout.splitlines())
    assert "context of 512 tokens" in told.stdout


def test_doctor_names_problems_and_fixes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = trimtab("doctor", "--port", str(taken.getsockname()[1]), "--model", "/no/such/folder")
    assert told.returncode == 1
    problems = [line for line in told.stdout.splitlines() if line.startswith("problem")]
    assert len(problems) == 2
    assert "--port" in problems[0]
    assert "/no/such/folder" in problems[1]


def test_norms_are_imported_exported_and_listed_without_a_server(tmp_path: Path) -> None:
    library, lines = tmp_path / "norms.sqlite", tmp_path / "norms.jsonl"
    told = [
        '{"id":"a","text":"Be kind."}',
        '{"id":"b","text":"Say it\\nin short.","tags":["tone","length"],"valid_until":"2030-01-01T00:00:00Z"}',
    ]
    lines.write_text("\n".join(told) + "\n")
    imported = trimtab("norms", "import", str(lines), "--library", str(library))
    assert (imported.returncode, imported.stdout) == (0, "2 created, 0 replaced, 0 as they were\n"), imported.stderr
    assert trimtab("norms", "export", "--library", str(library)).stdout.splitlines() == told
    listed = trimtab("norms", "list", "--library", str(library), "--tag", "tone")
    assert listed.stdout == "b\t1\ttone,length\tSay it in short.\n"

    lines.write_text(told[0] + '\n{"id": "c"}\n')
    failed = trimtab("norms", "import", str(lines), "--library", str(library))
    assert (failed.returncode, failed.stderr) == (1, "trimtab: line 2: text: Field required\n")
    missing = trimtab("norms", "list", "--library", str(tmp_path / "none"))
    assert missing.returncode == 1
    assert "there is no file" in missing.stderr
    assert not (tmp_path / "none").exists()
