"""Tools that others wrote, unpatched, against `trimtab serve`: llm, garak and lm-eval.

Each tool is installed into a virtual environment of its own, which is kept in the folder of `--envs` and used again.
The server runs on a tiny random model. While a tool runs, its home is an empty folder and every address but this
machine's is out of reach, so that nothing is asked of the network. Exit code 1 if a tool fails.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from report import print_json, print_table
from soak import SETTINGS, tiny_model

from trimtab.bench.serve import served

INSTALL_LIMIT = 1800
"""seconds for one call of pip"""
RUN_LIMIT = 600
"""seconds for one run of a tool"""
TOLERANCE = 1e-3
"""of a log-likelihood"""
GARAK_NEEDS = (
    "openai<3", "aiohttp", "backoff", "colorama", "httpx", "jinja2", "jsonpath-ng", "langdetect", "markdown", "nltk",
    "numpy", "pillow", "pyyaml", "requests", "tqdm", "xdg-base-dirs",
)  # fmt: skip
"""what garak imports for its OpenAI and REST generators; the rest of its requirements, torch among them, are clients of
other services and local models"""


class Failed(Exception):
    """A tool did not do what it was asked to; says what."""


@dataclass(frozen=True)
class Stage:
    """Where a tool runs, and what it runs against."""

    programs: Path
    """`bin` of the tool's environment"""
    folder: Path
    """empty at first, and the tool's home"""
    url: str
    model: Path
    """the folder of the served model, whose name is the model id"""

    def run(self, *command: str, **variables: str) -> str:
        """Run one of the tool's programs; what it printed. Raises Failed."""
        unreachable = "http://127.0.0.1:9"  # discard: nothing listens
        environment = {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "PYTHONUTF8": "1",
            "OMP_NUM_THREADS": "1",
            "http_proxy": unreachable,
            "https_proxy": unreachable,
            "no_proxy": "127.0.0.1",
            **variables,
        }
        return finished([str(self.programs / command[0]), *command[1:]], RUN_LIMIT, environment, self.folder)


@dataclass(frozen=True)
class Tool:
    """One tool: how to install it, and what it is asked to do."""

    package: str
    installs: tuple[tuple[str, ...], ...]
    """arguments of one call of pip after the other"""
    checks: Mapping[str, Callable[[Stage], str]]
    """what is asked -> run it, and say what came; raises Failed"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "trimtab" / "third_party"
    parser.add_argument("--envs", type=Path, default=cache, help="folder of the environments; %(default)s if absent")
    parser.add_argument("--only", choices=[tool.package for tool in tools()], help="absent: all")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as place:
        model = tiny_model(Path(place) / "tiny")
        for tool in tools():
            if args.only in (None, tool.package):
                rows += results(tool, args.envs.absolute(), Path(place) / tool.package, model)
    print_table(rows)
    print_json("third_party", rows, model=model.name)
    return 0 if all(row["met"] for row in rows) else 1


def tools() -> list[Tool]:
    """All tools."""
    return [
        Tool(
            "llm",
            (("llm",),),
            {
                "a prompt, whole and streamed": llm_prompts,
                "-o max_tokens 5": llm_limit,
                "a conversation that goes on": llm_conversation,
                "an answer under a JSON schema": llm_schema,
                "a raw completion": llm_completion,
                "a model that is not there": llm_unknown,
            },
        ),
        Tool(
            "lm-eval",
            (("lm-eval[api]", "transformers"),),
            {
                "local-completions, multiple choice, one by one": partial(harness, batch=1),
                "local-completions, multiple choice, batches of 4": partial(harness, batch=4),
            },
        ),
        Tool(
            "garak",
            (("--no-deps", "garak"), GARAK_NEEDS),
            {"openai.OpenAICompatible, test.Test": garak_openai, "rest.RestGenerator, test.Test": garak_rest},
        ),
    ]


def results(tool: Tool, environments: Path, folder: Path, model: Path) -> Iterator[dict[str, object]]:
    """A row per check."""
    version = "-"

    def row(asked: str, outcome: str, *, met: bool) -> dict[str, object]:
        return {"tool": tool.package, "version": version, "asked": asked, "outcome": outcome, "met": met}

    try:
        programs = installed(tool, environments / tool.package)
        version = finished([str(programs / "python"), "-c", VERSION.format(tool.package)], RUN_LIMIT).strip()
    except Failed as failure:
        print(*getattr(failure, "__notes__", ()), sep="\n", file=sys.stderr)
        yield row("install", str(failure), met=False)
        return
    with served(str(model), SETTINGS) as server:
        for i, (asked, check) in enumerate(tool.checks.items()):
            stage = Stage(programs, folder / str(i), server.url, model)
            stage.folder.mkdir(parents=True)
            try:
                yield row(asked, check(stage), met=True)
            except Failed as failure:
                print(*getattr(failure, "__notes__", ()), sep="\n", file=sys.stderr)
                yield row(asked, str(failure), met=False)


VERSION = "from importlib.metadata import version; print(version({!r}))"


def installed(tool: Tool, folder: Path) -> Path:
    """The environment's `bin`; made unless a finished one with the same packages is there. Raises Failed."""
    done, wanted = folder / "installed.json", json.dumps(tool.installs)
    programs = folder / "bin"
    if not done.exists() or done.read_text() != wanted:
        finished([sys.executable, "-m", "venv", "--clear", str(folder)], INSTALL_LIMIT)
        for packages in tool.installs:
            finished([str(programs / "pip"), "install", "--quiet", *packages], INSTALL_LIMIT)
        done.write_text(wanted)
    return programs


def finished(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> str:
    """Run a program to its end; what it printed. Raises Failed."""
    try:
        ran = subprocess.run(
            command,
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{Path(command[0]).name} did not end in {seconds:g} s") from late
    if ran.returncode != 0:
        last = (ran.stderr or ran.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        failure = Failed(f"{Path(command[0]).name} ended with {ran.returncode}: {last[0]}")
        failure.add_note(f"{ran.stdout}\n{ran.stderr}")
        raise failure
    return ran.stdout


def expect(holds: bool, what: str) -> None:
    """Raise Failed with `what` was wrong unless it holds."""
    if not holds:
        raise Failed(what)


def llm(stage: Stage, *arguments: str) -> str:
    """What `llm` prints, without the newline at the end; the served model is `served`, its completions are `raw`."""
    entry = {"model_name": stage.model.name, "api_base": f"{stage.url}/v1"}
    models = [
        {**entry, "model_id": "served", "supports_schema": True},
        {**entry, "model_id": "raw", "completion": True},
        {**entry, "model_id": "absent", "model_name": "absent"},
    ]
    (stage.folder / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
    return stage.run("llm", *arguments, LLM_USER_PATH=str(stage.folder)).removesuffix("\n")


def llm_prompts(stage: Stage) -> str:
    ask = ("-m", "served", "-s", "Be kind.", "-o", "seed", "1", "-o", "max_tokens", "100", "What is a trim tab?")
    streamed, whole = llm(stage, *ask), llm(stage, "--no-stream", *ask)
    expect(bool(whole), "no text came")
    expect(streamed == whole, f"the stream said {streamed!r} and the whole answer {whole!r}")
    return f"the same {len(whole)} characters"


def llm_limit(stage: Stage) -> str:
    text = llm(stage, "-m", "served", "-o", "seed", "1", "-o", "max_tokens", "5", "Hi")
    (log,) = json.loads(llm(stage, "logs", "-n", "1", "--json"))
    expect(bool(text), "no text came")
    expect(log["output_tokens"] == 5, f"the log says {log['output_tokens']} tokens")
    return f"{log['output_tokens']} tokens after {log['input_tokens']}"


def llm_conversation(stage: Stage) -> str:
    sizes = []
    for turn in (("-m", "served", "Hi"), ("-c", "More")):
        text = llm(stage, *turn, "-o", "seed", "1", "-o", "max_tokens", "20")
        expect(bool(text), "no text came")
        (log,) = json.loads(llm(stage, "logs", "-n", "1", "--json"))
        sizes.append(log["input_tokens"])
    expect(sizes[1] > sizes[0] + len("More"), f"prompts of {sizes[0]} and {sizes[1]} tokens")
    return f"prompts of {sizes[0]} and {sizes[1]} tokens"


def llm_schema(stage: Stage) -> str:
    choice = {"kind": {"type": "string", "enum": ["good", "bad"]}}
    schema = {"type": "object", "properties": choice, "required": ["kind"], "additionalProperties": False}
    text = llm(stage, "-m", "served", "--schema", json.dumps(schema), "-o", "max_tokens", "100", "Hi")
    try:
        answer = json.loads(text)
    except json.JSONDecodeError as error:
        raise Failed(f"{text!r} is no JSON: {error}") from error
    expect(answer in ({"kind": "good"}, {"kind": "bad"}), f"it said {text!r}")
    return json.dumps(answer)


def llm_completion(stage: Stage) -> str:
    text = llm(stage, "-m", "raw", "-o", "seed", "1", "-o", "max_tokens", "30", "Once upon a time")
    expect(bool(text), "no text came")
    return f"{len(text)} characters"


def llm_unknown(stage: Stage) -> str:
    try:
        text = llm(stage, "-m", "absent", "Hi")
    except Failed as failure:
        expect("'absent' does not exist; valid are tiny" in str(failure), str(failure))
        return str(failure)
    raise Failed(f"it answered {text!r}")


def harness(stage: Stage, *, batch: int) -> str:
    """A task of invented questions; every log-likelihood against transformers."""
    questions = invented()
    rows = stage.folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in questions))
    task = {
        "task": "invented",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    (stage.folder / "invented.yaml").write_text(json.dumps(task))  # JSON is YAML
    stage.run(
        "lm_eval", "run", "--model", "local-completions", "--model_args",
        f"model={stage.model.name},base_url={stage.url}/v1/completions,tokenizer={stage.model},"
        "tokenizer_backend=huggingface,max_length=512",
        "--tasks", "invented", "--include_path", str(stage.folder), "--batch_size", str(batch),
        "--output_path", str(stage.folder / "out"), "--log_samples",
        HF_HUB_OFFLINE="1",
    )  # fmt: skip
    (told,) = (stage.folder / "out").rglob("samples_invented_*.jsonl")
    (summary,) = (stage.folder / "out").rglob("results_*.json")
    accuracy = json.loads(summary.read_text())["results"]["invented"]["acc,none"]
    samples = sorted((json.loads(line) for line in told.read_text().splitlines()), key=lambda each: each["doc_id"])
    want = likelihoods(stage.model, questions)
    worst = 0.0
    for sample, row in zip(samples, want, strict=True):
        got = [float(pair[0]) for pair in sample["filtered_resps"]]
        worst = max(worst, *(abs(a - b) for a, b in zip(got, row, strict=True)))
    expect(worst <= TOLERANCE, f"a log-likelihood differs by {worst:.2g}")
    hits = [row.index(max(row)) == question["label"] for row, question in zip(want, questions, strict=True)]
    expect(abs(accuracy - sum(hits) / len(hits)) < 1e-9, f"accuracy {accuracy}, not {sum(hits) / len(hits)}")
    count = sum(map(len, want))
    return f"accuracy {accuracy:.3f} as by transformers, {count} log-likelihoods within {worst:.1g}"


def invented() -> list[dict[str, Any]]:
    """Questions with three answers each."""
    things = ("a film", "el café", "有朋", "a \U0001f642", "naïveté", "x = 3", "Liberté", "the <|end|> of it")
    return [
        {"question": f"Is {thing} {word}?", "choices": ["yes", "no, it is not", thing], "label": 1 - i % 2}
        for thing in things
        for i, word in enumerate(("good", "bad", "open"))
    ]


def likelihoods(model: Path, questions: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Of each choice of each question, by transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    language_model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def likelihood(context: str, choice: str) -> float:
        # The harness puts a space between a context and a choice.
        first, ids = len(tokenizer.encode(context)), tokenizer.encode(context + " " + choice)
        with torch.inference_mode():
            rows = language_model(torch.tensor([ids])).logits[0, first - 1 : -1].double().log_softmax(dim=1)
        return float(rows.gather(1, torch.tensor(ids[first:])[:, None]).sum())

    return [
        [likelihood(f"Question: {row['question']}\nAnswer:", choice) for choice in row["choices"]] for row in questions
    ]


def garak_openai(stage: Stage) -> str:
    options = {"openai": {"OpenAICompatible": {"uri": f"{stage.url}/v1/", "max_tokens": 24}}}
    return garak(stage, "openai.OpenAICompatible", stage.model.name, options)


def garak_rest(stage: Stage) -> str:
    messages = [{"role": "user", "content": "$INPUT"}]
    options = {
        "uri": f"{stage.url}/v1/chat/completions",
        "headers": {"Content-Type": "application/json", "Authorization": "Bearer $KEY"},
        "req_template_json_object": {"model": stage.model.name, "messages": messages, "max_tokens": 24},
        "response_json": True,
        "response_json_field": "$.choices[0].message.content",
    }
    return garak(stage, "rest.RestGenerator", "served", {"rest": {"RestGenerator": options}})


def garak(stage: Stage, kind: str, name: str, options: Mapping[str, Any]) -> str:
    """Its probe of eight test prompts, the empty one among them; every one must have been answered."""
    path = stage.folder / "options.json"
    path.write_text(json.dumps(options))
    stage.run(
        "garak", "--target_type", kind, "--target_name", name, "--generator_option_file", str(path),
        "--spec", "probes.test.Test", "--detectors", "always.Pass", "--generations", "1",
        "--report_prefix", str(stage.folder / "told"),
        OPENAICOMPATIBLE_API_KEY="none", REST_API_KEY="none",
    )  # fmt: skip
    lines = [json.loads(line) for line in (stage.folder / "told.report.jsonl").read_text().splitlines()]
    attempts = [line for line in lines if line["entry_type"] == "attempt" and line["status"] == 2]
    outputs = [output for attempt in attempts for output in attempt["outputs"]]
    texts: list[str] = [output["text"] for output in outputs if output is not None and output["text"] is not None]
    expect(len(outputs) == 8, f"{len(outputs)} of 8 prompts were asked")
    expect(len(texts) == 8 and any(texts), f"{len(texts)} of 8 prompts were answered: {texts}")
    return f"{len(texts)} prompts answered, {sum(map(len, texts))} characters"


if __name__ == "__main__":
    sys.exit(main())
