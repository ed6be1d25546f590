"""The plugin inside a real vLLM, end to end: `python check.py` in the environment that venv.sh makes.

Our own engine, `vllm.LLM` and vLLM's server answer the same prompts greedily in float32. Plain rows and rows with
weight 0 have to be those of plain decoding, all others those of our engine; where two answers part, the table says at
which token and how close the choice was. Ends with 1 if something is wrong.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from cases import CASES, LONGEST, TOKENS, configure
from offline import xargs

from trimtab.engine.sources import resolve

HERE = Path(__file__).parent
START = 180.0
"""seconds that vLLM has to start"""
CLOSE = 1e-3
"""nats between two tokens that rounding may decide between"""
QUIET = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
Failures = list[str]


def main() -> int:
    began, failures = time.monotonic(), Failures()
    with tempfile.TemporaryDirectory() as folder:
        place, base = Path(folder), resolve("demo")
        os.environ |= {"TRIMTAB_VLLM_CONFIG": str(configure(place, base))} | QUIET
        os.environ.setdefault("OMP_NUM_THREADS", "2")
        for script in ("ours.py", "offline.py"):
            run(script, place)
        ours, theirs = (json.loads((place / f"{name}.json").read_text()) for name in ("ours", "theirs"))
        compare(ours, theirs["answers"], failures)
        if not theirs["preempted"]:
            failures.append("no request was preempted: give vLLM fewer pages")
        over_http(str(base), ours["prompts"][0], theirs["answers"], failures)
    print(f"{theirs['preempted']:.0f} preemptions; {time.monotonic() - began:.0f} s")
    for each in failures:
        print("FAILED:", each)
    return bool(failures)


def run(script: str, place: Path) -> None:
    """Run one side in a process of its own; what it logs shows only if it fails."""
    ended = subprocess.run(
        [sys.executable, HERE / script, place], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=START * 2
    )
    if ended.returncode:
        sys.stderr.buffer.write(ended.stdout[-8000:])
        raise SystemExit(f"{script} failed")


def compare(ours: dict[str, Any], theirs: dict[str, list[list[int]]], failures: Failures) -> None:
    """Print how vLLM's answers compare with ours, and note what is wrong."""
    print(f"{'case':28}{'same answers':>14}{'other than plain':>18}  where they part")
    for case in CASES:
        mine, found = [each["ids"] for each in ours["answers"][case.name]], theirs[case.name]
        steered = sum(a != b for a, b in zip(found, theirs["plain"], strict=True))
        parted = []
        for number, (answer, other) in enumerate(zip(ours["answers"][case.name], found, strict=True)):
            if answer["ids"] != other:
                text, margin = parting(answer, other)
                parted.append(f"prompt {number}: {text}")
                if margin > CLOSE:
                    failures.append(f"{case.name}: {parted[-1]}")
        same = sum(a == b for a, b in zip(mine, found, strict=True))
        print(f"{case.name:28}{f'{same} of {len(mine)}':>14}{steered:>18}  {'; '.join(parted)}")
        if bool(steered) is case.alike:
            failures.append(f"{case.name}: {steered} answers are other than plain ones")
    if theirs["abstain never"] != theirs["plain"]:
        failures.append("a threshold that is never missed changes answers")
    if any(len(each) > 1 for each in theirs["abstain always"]):
        failures.append("a base that is never sure enough still answers")


def parting(answer: dict[str, Any], other: list[int]) -> tuple[str, float]:
    """Where two answers part, and by how many nats our engine preferred its own token there."""
    ids = answer["ids"]
    at = next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))
    if at == min(len(ids), len(other)):
        return f"one ends at token {at}", float("inf")
    top = answer["top"][at]
    margin = top[str(ids[at])] - top.get(str(other[at]), -float("inf"))
    return f"token {at}, by {margin:.2g} nats", margin


def over_http(base: str, prompt: list[int], offline: dict[str, list[list[int]]], failures: Failures) -> None:
    """Ask a server for some of the same, and for what it must refuse."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not `vllm serve`, which looks for a package called vllm.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", base, "--host", "127.0.0.1"]
    command += ["--served-model-name", "demo", "--port", port, "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", LONGEST]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen([str(each) for each in command], stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + START
            while ask(port, "/health") != (200, ""):
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.stderr.buffer.write(log.read()[-8000:])
                    raise SystemExit("vLLM's server did not start")
                time.sleep(1)
            http = [case for case in CASES if case.name in ("plain", "weight 0", "random guide", "penalties")]
            for case in http:
                extra = xargs(case.decoding, case.penalties)
                status, told = complete(port, prompt, extra)
                expected = offline[case.name][0]
                same = status == 200 and told["choices"][0]["token_ids"] == expected
                print(f"{'HTTP, ' + case.name:28}{f'{int(same)} of 1':>14}")
                if not same:
                    failures.append(f"HTTP, {case.name}: {status} {told}")
            refused = {"strategy": "best_of_n", "n": 4, "reward": "brevity"}
            status, told = complete(port, prompt, xargs(refused, {}))
            message = told.get("error", {}).get("message", "")
            print(f"HTTP, best_of_n: {status} {message}")
            if status != 400 or "decoding.strategy" not in message:
                failures.append("best_of_n is not refused by the name of its field")
        finally:
            server.terminate()
            server.wait(30)


def complete(port: int, prompt: list[int], extra: dict[str, object]) -> tuple[int, dict[str, Any]]:
    """A greedy completion of token ids."""
    asked = {"model": "demo", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
    status, text = ask(port, "/v1/completions", {**asked, "vllm_xargs": extra})
    return status, json.loads(text)


def ask(port: int, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """Status and text of an answer; status 0 where nobody listens."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()
    except (URLError, OSError):
        return 0, ""


if __name__ == "__main__":
    sys.exit(main())
