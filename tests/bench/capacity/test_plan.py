"""Stations by hand, known queues, and what a plan says of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from trimtab.bench.capacity.machines.gpu import Gpu, Roofline, sheets
from trimtab.bench.capacity.machines.measured import Workstation, machine_of
from trimtab.bench.capacity.mix import Mix
from trimtab.bench.capacity.planner import MOST, enough, met, needed, plan
from trimtab.bench.capacity.site import Site, site_of
from trimtab.bench.capacity.sizes import Size, known, size_of
from trimtab.bench.capacity.slo import parse_slo
from trimtab.bench.capacity.station import states
from trimtab.bench.capacity.work import BASE
from trimtab.bench.errors import BenchError
from trimtab.server.cli import app


def entry(**changes: Any) -> dict[str, Any]:
    return {"share": 1, "prompt": {"mean": 101}, "answer": {"mean": 50, "ends": "limit"}, **changes}


def judged(n: int, **changes: Any) -> dict[str, Any]:
    return entry(decoding={"strategy": "best_of_n", "n": n, "reward": "judge"}, **changes)


def test_a_replica_by_hand(site: Callable[..., Site]) -> None:
    process = site(engine={"max_rows": 10}).process
    assert process.slots == 10
    # 50 steps of 10 ms + 1 ms a row, 100 tokens of 0.1 ms, and 5 ms for the request.
    assert process.rate(1) == pytest.approx(1 / (50 * 0.011 + 0.010 + 0.005))
    assert process.rate(10) == pytest.approx(10 / (50 * 0.020 + 10 * 0.015))
    assert process.best == process.rate(25), "more than the slots wait"
    spent = {each.what: each.seconds for each in process.spending()}
    assert spent == {
        "base: measured": pytest.approx(0.1),
        "prompts": pytest.approx(0.01),
        "requests": pytest.approx(0.005),
    }


def test_long_prompts_take_several_forwards(mix: Callable[..., Mix]) -> None:
    def prompts(tokens: float, under_way: float, **engine: Any) -> float:
        mixed = mix(model="llama-3-8b", requests=[entry(prompt={"mean": tokens + 1})], engine=engine)
        return site_of(mixed, machine_of("l4")).process.aside(under_way)["prompts"]

    clock = Roofline(sheets()["l4"], known()["llama-3-8b"])
    assert prompts(5120, 1) == pytest.approx(clock.read(5120, 10)), "512 tokens each"
    assert prompts(5120, 1, prefill_tokens=2048) == pytest.approx(clock.read(5120, 2.5))
    assert prompts(256, 1) < clock.read(256, 1), "short ones share one"
    assert prompts(256, 5000) == pytest.approx(clock.read(256, 0.5)), "but no more of them than fit"


def test_spread_makes_contexts_longer(mix: Callable[..., Mix], site: Callable[..., Site]) -> None:
    assert site().process.context == 101 + 25
    assert site(requests=[entry(answer={"mean": 50, "cv": 1.0})]).process.context == pytest.approx(101 + 50)
    spread = mix(model="llama-3-8b", requests=[entry(answer={"mean": 50, "cv": 1.0})])
    assert site_of(spread, machine_of("h200")).memory.request == pytest.approx(101 + 50)


def test_adapters_are_rows_of_the_base(site: Callable[..., Site]) -> None:
    steered = site(requests=[entry(decoding={"strategy": "genarm", "arm": "arm"})]).process
    rows = {name: seconds for name, seconds, _ in steered.tick(4)}
    assert rows == {BASE: pytest.approx(0.018)}, "8 rows in one step"


def test_models_of_one_process_take_turns(mix: Callable[..., Mix]) -> None:
    guides = {"arm": {"model": "llama-3.2-1b"}}
    requests = [entry(decoding={"strategy": "genarm", "arm": "arm"})]
    site = site_of(mix(model="llama-3-8b", guides=guides, requests=requests), machine_of("h200"))
    sheet = sheets()["h200"]
    alone = [Roofline(sheet, known()[name]).step(4, 101 + 25).seconds for name in ("llama-3-8b", "llama-3.2-1b")]
    assert sum(seconds for _, seconds, _ in site.process.tick(4)) == pytest.approx(sum(alone))


def test_known_queues() -> None:
    alone = states(lambda n: 1.0, 10_000, 0.5)  # M/M/1: (1 - r) r ** n
    assert alone[:3] == pytest.approx([0.5, 0.25, 0.125])
    four = states(lambda n: min(n, 4.0), 4, 3.0)  # M/M/4 with 3 erlangs: Erlang C is 0.5094
    assert sum(four[4:]) == pytest.approx(0.5094, abs=1e-3)
    with pytest.raises(ValueError, match="at most 1 leave"):
        states(lambda n: 1.0, 5, 1.5)


def test_the_mean_is_that_of_processor_sharing(site: Callable[..., Site]) -> None:
    one = site(engine={"max_rows": 1})
    seconds = 1 / one.process.best
    made = plan(one, 0.6 / seconds, {BASE: 1})
    assert made.latency is not None
    assert made.latency.mean == pytest.approx(seconds / 0.4, rel=1e-3)  # M/M/1
    split = plan(one, 1.2 / seconds, {BASE: 2})
    assert split.latency is not None
    assert split.latency.mean == pytest.approx(made.latency.mean)


@pytest.mark.parametrize("gpu", ["h200", "l4"])
def test_more_load_never_needs_fewer(mix: Callable[..., Mix], gpu: str) -> None:
    site = site_of(mix(model="llama-3-8b", guides={"judge": {"model": "llama-3.2-1b", "apart": True}},
                       requests=[judged(4), entry()]), machine_of(gpu))  # fmt: skip
    plans = [needed(site, rps, 0.3, {"p95": 60.0}) for rps in (0.1, 1, 5, 20, 80, 320)]
    counts = [each.gpus for each in plans]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    assert all(load.utilisation <= 0.7 for each in plans for load in each.loads)
    fewer = plan(site, 320, {load.name: load.gpus - (load.name == BASE) for load in plans[-1].loads})
    assert fewer.loads[0].utilisation > 0.7, "and no GPU is there for nothing"


def test_an_objective_takes_more(site: Callable[..., Site]) -> None:
    one = site(requests=[entry(answer={"mean": 50, "cv": 0.6})])
    loose, tight = needed(one, 30.0, 0.3, {}), needed(one, 30.0, 0.3, {"p95": 1.6})
    assert loose.latency is not None
    assert tight.latency is not None
    assert loose.latency.p95 > 1.6 >= tight.latency.p95
    assert tight.gpus > loose.gpus
    before = plan(one, 30.0, {BASE: tight.gpus - 1}).latency
    assert before is not None
    assert before.p95 > 1.6
    with pytest.raises(BenchError, match=r"--slo p95=0\.1s: an idle GPU already takes"):
        needed(one, 30.0, 0.3, {"p95": 0.1})


@pytest.mark.parametrize(
    ("judge", "allowed", "rps"),
    [
        ("llama-3-8b", {"p95": 1.2}, 20),
        ("llama-3-8b", {"p50": 1.3, "p95": 1.2}, 40),
        ("llama-3.2-1b", {"mean": 1.1}, 40),
        ("llama-3-8b", {"mean": 1.03}, 20),
    ],
)
def test_no_grid_finds_fewer(mix: Callable[..., Mix], judge: str, allowed: dict[str, float], rps: float) -> None:
    """Objectives are so many times what an idle GPU takes."""
    guides, short = {"judge": {"model": judge, "apart": True}}, {"answer": {"mean": 60, "cv": 0.6}}
    mixed = mix(model="llama-3.2-1b", guides=guides, requests=[judged(8, **short), entry(**short)])
    site = site_of(mixed, machine_of("l40s"))
    idle = plan(site, rps, {BASE: MOST, "judge": MOST}).latency
    slo = {name: times * getattr(idle, name) for name, times in allowed.items()}
    found, least = needed(site, rps, 0.3, slo), enough(site, rps, 0.3)
    assert all(met(found, 0.3, slo).values())
    assert found.gpus > sum(least.values()), "the objective takes more"
    fewer = [
        (base, total - base) for total in range(found.gpus) for base in range(least[BASE], total + 1 - least["judge"])
    ]
    assert fewer
    for base, judges in fewer:
        assert not all(met(plan(site, rps, {BASE: base, "judge": judges}), 0.3, slo).values()), (base, judges)


def test_who_asks_no_judge_waits_for_none(mix: Callable[..., Mix]) -> None:
    def latency(share: float) -> Any:
        guides = {"judge": {"model": "llama-3-8b", "apart": True}}
        requests = [entry(share=1 - share), judged(1, share=share)]
        site = site_of(mix(model="llama-3.2-1b", guides=guides, requests=requests), machine_of("l4"))
        return plan(site, 0.01, {BASE: 1, "judge": 1}).latency, site.judges[0].kinds[1]

    (seldom, seconds), (often, _) = latency(0.02), latency(0.5)
    assert seldom.mean - seldom.base == pytest.approx(0.02 * seconds, rel=0.01)
    assert seldom.p95 == pytest.approx(seldom.base, rel=0.05), "one in fifty is beyond the 95th percentile"
    assert often.p95 == pytest.approx(often.base + 3 * seconds, rel=0.05)


def test_the_bottleneck_moves_to_the_judge(mix: Callable[..., Mix]) -> None:
    def bottleneck(judge: str | dict[str, Any], n: int) -> str:
        guides = {"judge": {"model": judge, "apart": True}}
        site = site_of(mix(model="llama-3.2-1b", guides=guides, requests=[judged(n)]), machine_of("h200"))
        return plan(site, 1.0, {BASE: 1, "judge": 1}).bottleneck.name

    assert bottleneck("llama-3.2-1b", 2) == BASE
    assert bottleneck({**known()["llama-3-70b"].model_dump(), "dtype": "fp8"}, 8) == "judge"


def test_what_sets_a_step() -> None:
    small, large = Roofline(sheets()["h200"], known()["demo"]), Roofline(sheets()["l4"], known()["llama-3-8b"])
    assert small.step(1, 100).limit == "host"
    assert large.step(1, 100).limit == "weights"
    assert large.step(64, 8000).limit == "cache"
    assert large.step(2000, 1).limit == "arithmetic"
    assert large.step(1, 0).seconds > 8.03e9 * 2 / 300e9, "no step is faster than the weights can be read"


def test_memory(mix: Callable[..., Mix]) -> None:
    with pytest.raises(BenchError, match=r"model: 141\.1 GB of weights .* do not fit .* --gpu h200"):
        site_of(mix(model="llama-3-70b"), machine_of("h200"))
    site = site_of(mix(model="llama-3-8b"), machine_of("l40s"))
    assert site.memory.token == 2 * 32 * 8 * 128 * 2
    assert site.memory.room == pytest.approx((48e9 * 0.9 - 8030261248 * 2 - 1e9) / 131072)
    long = entry(prompt={"mean": 8000})
    full = site_of(mix(model="llama-3-8b", requests=[long], engine={"max_rows": 256}), machine_of("l40s"))
    assert full.narrow == "memory"
    assert full.process.slots == pytest.approx(full.memory.room / 8025)


def test_a_judge_has_to_fit_on_its_own_gpu(mix: Callable[..., Mix]) -> None:
    guides = {"judge": {"model": "llama-3-70b", "apart": True}}
    small = mix(model="llama-3.2-1b", guides=guides, requests=[judged(4)])
    with pytest.raises(BenchError, match=r"^guides\.judge: 141\.1 GB of weights do not fit .* --gpu l4:"):
        site_of(small, machine_of("l4"))
    unused = mix(model="llama-3.2-1b", guides=guides)
    assert not site_of(unused, machine_of("l4")).judges


def test_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
              "intermediate_size": 14336, "vocab_size": 128256, "torch_dtype": "bfloat16"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    read, told = size_of(str(folder), "model"), known()["llama-3-8b"]
    assert read.parameters == pytest.approx(told.parameters, rel=1e-3)
    assert read.model_copy(update={"parameters": told.parameters}) == told
    with pytest.raises(BenchError, match=r"^model: unknown model 'llama-3-8'; do you mean 'llama-3-8b'\?"):
        size_of("llama-3-8", "model")
    (folder / "config.json").write_text("{}")
    with pytest.raises(BenchError, match=r"^guides\.g\.model: its config\.json has no 'hidden_size'"):
        size_of(str(folder), "guides.g.model")
    others = {"num_local_experts": 8, "num_experts": 64, "n_routed_experts": 64, "quantization_config": {"bits": 4}}
    for key, value in others.items():
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(BenchError, match=rf"^model: its config\.json has '{key}', .*: write the size out"):
            size_of(str(folder), "model")
    (folder / "config.json").write_text(json.dumps({**config, "num_experts": None, "quantization_config": None}))
    assert size_of(str(folder), "model") == read
    with pytest.raises(BenchError, match="cannot be read"):
        size_of(str(tmp_path), "model")
    assert Size(**{**told.model_dump(), "dtype": "fp8"}).kv == told.kv, "keys and values stay at 16 bits"


def test_machines(tmp_path: Path, machine: Workstation, mix: Callable[..., Mix]) -> None:
    assert isinstance(machine_of("H200"), Gpu)
    with pytest.raises(BenchError, match=r"--gpu: unknown machine 'h20'; do you mean 'h200'\?"):
        machine_of("h20")
    file = tmp_path / "mine.json"
    file.write_text(machine.calibration.model_dump_json())
    assert machine_of(str(file)) == machine
    file.write_text(json.dumps(machine.calibration.model_dump(mode="json") | {"reqest": 1}))
    with pytest.raises(BenchError, match=r"mine\.json: reqest: unknown key 'reqest'; do you mean 'request'\?"):
        machine_of(str(file))
    with pytest.raises(BenchError, match=r"--gpu toy was measured with other models: unknown model 'llama-3-8b'"):
        site_of(mix(model="llama-3-8b"), machine)


def test_objectives() -> None:
    assert parse_slo(["p95=5s", "p50=800ms", "mean=1.5m"]) == {"p95": 5.0, "p50": 0.8, "mean": 90.0}
    with pytest.raises(BenchError, match=r"--slo '5s': write it as p95=5s"):
        parse_slo(["5s"])
    with pytest.raises(BenchError, match=r"unknown measure 'p59'; do you mean 'p95'"):
        parse_slo(["p59=5s"])


def told(file: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", f"--mix={file}", *map(str, arguments)])


def test_the_command(file: Callable[..., Path]) -> None:
    path = file(model="llama-3-8b", guides={"judge": {"model": "llama-3.2-1b", "apart": True}}, requests=[judged(4)])
    done = told(path, "--rps=50", "--gpu=h200")
    assert done.exit_code == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert "50 requests/s need" in first
    for words in ("bottleneck: ", "judge", "with one more for", "of weights", "not measured: 70% of its bandwidth"):
        assert words in done.stdout
    document = json.loads(told(path, "--rps=50", "--gpu=h200", "--json").stdout)
    assert f"need {document['gpus']} x h200" in first
    assert {each["name"] for each in document["stations"]} == {"base", "judge"}
    assert document["derived"] is True
    assert document["simulation"] is None
    given = json.loads(told(path, "--rps=50", "--gpu=h200", "--gpus=1", "--json").stdout)
    assert given["stations"][0]["gpus"] == 1


def test_gpus_that_are_given_are_judged(file: Callable[..., Path]) -> None:
    path = file(model="llama-3-8b", guides={"judge": {"model": "llama-3.2-1b", "apart": True}}, requests=[judged(4)])

    def given(*arguments: str) -> tuple[str, dict[str, Any]]:
        command = ("--rps=50", "--gpu=h200", *arguments)
        done = told(path, *command)
        assert done.exit_code == 0, done.stderr
        return done.stdout.splitlines()[0], json.loads(told(path, *command, "--json").stdout)

    first, document = given("--gpus=1", "--slo=p95=5s", "--slo=p50=10ms")
    assert first == (
        "1 x h200 given for base, 1 more for judges, 50 requests/s; 30% kept free: missed, p95 within 5 s: missed, "
        "p50 within 0.01 s: missed"
    )
    assert document["meets"] == {"headroom": False, "p95": False, "p50": False}
    assert (document["given"], document["slo"]) == (True, {"p95": 5.0, "p50": 0.01})
    first, document = given("--gpus=40", "--slo=p95=5s", "--slo=p50=10ms")
    assert first.endswith("30% kept free: met, p95 within 5 s: met, p50 within 0.01 s: missed")
    assert document["meets"] == {"headroom": True, "p95": True, "p50": False}
    first, document = given("--slo=p95=5s")
    assert first == f"50 requests/s need {document['gpus']} x h200 (30% kept free, p95 within 5 s)"
    assert document["meets"] == {"headroom": True, "p95": True}


def test_a_simulation_is_held_against_the_base_alone(file: Callable[..., Path]) -> None:
    guides = {"judge": {"model": "llama-3-8b", "apart": True}}
    fleet = {"requests": 20000, "routing": "random"}
    path = file(model="llama-3.2-1b", guides=guides, requests=[judged(8)], fleet=fleet)
    command = ("--rps=20", "--gpu=l4", "--simulate")
    document = json.loads(told(path, *command, "--json").stdout)
    latency, outcome = document["latency"], document["simulation"]
    assert latency["mean"] > 1.15 * latency["base"], "the judge takes its time"
    assert outcome["mean"] == pytest.approx(latency["base"], rel=0.1)
    text = told(path, *command).stdout
    off = outcome["mean"] / latency["base"] - 1
    assert "simulated, base only, 20,000 requests" in text
    assert f"({off:+.0%} of the formula's {latency['base']:.2f} s)" in text
    assert "too short" not in text


def test_a_simulation_that_is_over_too_soon_says_so(file: Callable[..., Path]) -> None:
    path = file(model="llama-3-8b", fleet={"requests": 500, "routing": "random"})
    short = told(path, "--rps=1000", "--gpu=h200", "--simulate").stdout
    assert "too short to trust: all arrive within 0.5 s" in short
    wanted = short.split("raise fleet.requests to ")[1].split(" ")[0].replace(",", "")
    longer = file(model="llama-3-8b", fleet={"requests": int(wanted), "routing": "random"})
    assert "too short" not in told(longer, "--rps=1000", "--gpu=h200", "--simulate").stdout


def test_it_simulates_what_it_plans(file: Callable[..., Path]) -> None:
    path = file(model="llama-3-8b", fleet={"requests": 20000, "routing": "random"})
    command = ("--rps=100", "--gpu=l40s", "--simulate", "--json")
    document = json.loads(told(path, *command).stdout)
    outcome = document["simulation"]
    assert outcome["finished"] == 20000
    assert outcome["mean"] == pytest.approx(document["latency"]["mean"], rel=0.1)
    assert outcome["p50"] == pytest.approx(document["latency"]["p50"], rel=0.1)
    assert outcome["utilisation"] == pytest.approx(document["stations"][0]["utilisation"], rel=0.05)
    assert document == json.loads(told(path, *command).stdout), "the same seed"
    assert outcome != json.loads(told(path, *command, "--seed=1").stdout)["simulation"]
    drowned = told(path, "--rps=1000", "--gpu=l4", "--gpus=1", "--simulate")
    assert drowned.exit_code == 1
    assert "--simulate: more arrives than can leave" in drowned.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modle": "demo"}, "modle: unknown key 'modle'; do you mean 'model'?"),
        ({"model": "lama-3-8b"}, "model: unknown model 'lama-3-8b'; do you mean 'llama-3-8b'?"),
        ({"requests": [entry(promt={})]}, "requests.0.promt: unknown key 'promt'; do you mean 'prompt'?"),
        ({"requests": [{"share": 1}]}, "requests.0.prompt is missing"),
        ({"requests": [entry(share=-1)]}, "requests.0.share: Input should be greater than 0"),
        ({"requests": [entry(answer={"mean": 10, "p95": 50})]}, "requests.0.answer: p95=50 has to lie between"),
        ({"requests": [entry(answer={"mean": 10, "p95": 20, "cv": 1})]}, "p95 and cv say the same"),
        ({"requests": [entry(decoding={"strategy": "best_of_m"})]}, "did you mean 'best_of_n'?"),
        (
            {"requests": [entry(decoding={"strategy": "best_of_n", "m": 2, "reward": "judge"})]},
            "unknown decoding key 'm'",
        ),
        ({"guides": {"base": {"kind": "adapter"}}}, "guides: 'base' is the base model's own name"),
        ({"guides": {"judge": {"kind": "model"}}}, "guides.judge: kind model needs `model`"),
        ({"fleet": {"routing": "best"}}, "fleet.routing: Input should be 'random', 'two' or 'prefix'"),
        ({"fleet": {"autoscale": {"most": 1, "least": 2, "target": 1}}}, "fleet.autoscale: least=2 is above most=1"),
    ],
)
def test_bad_files_name_the_field(file: Callable[..., Path], changes: dict[str, Any], words: str) -> None:
    done = told(file(**changes), "--rps=1", "--gpu=h200")
    assert done.exit_code == 1
    assert words in done.stderr


def test_a_file_that_is_none(tmp_path: Path) -> None:
    assert "cannot be read" in told(tmp_path / "nothing.yaml", "--rps=1", "--gpu=h200").stderr
    (tmp_path / "list.yaml").write_text("[1]")
    assert "must be an object with the keys model" in told(tmp_path / "list.yaml", "--rps=1", "--gpu=h200").stderr
    (tmp_path / "broken.yaml").write_text("a: [")
    assert "is no YAML" in told(tmp_path / "broken.yaml", "--rps=1", "--gpu=h200").stderr
