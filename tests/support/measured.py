"""Metrics of two models of which every family has a sample, as a scrape of a busy server would find them."""

from prometheus_client.parser import text_string_to_metric_families

from trimtab.engine.remote.stats import RemoteStats
from trimtab.engine.results import Candidate, Choice, Delta, EngineStats, Failure, Result, Steering, Usage
from trimtab.engine.tally import ROWS, SECONDS, Tally
from trimtab.server.metrics import Metrics


def busy(scale: int = 1) -> EngineStats:
    """An engine with one guide that has done everything at least once."""
    sizes, seconds = Tally(ROWS), Tally(SECONDS)
    sizes.add(3 * scale)
    seconds.add(0.02 * scale)
    stats = EngineStats(
        running=2 * scale,
        waiting=scale,
        rows=5,
        pages_total=100,
        pages_used=25,
        pages_cached=10,
        pages_pinned=3,
        prefix_queries=90,
        prefix_hits=30,
        prompt_tokens=80,
        generation_tokens=70,
        forks=4,
        preemptions=1,
        model_tokens={"base": 150 * scale},
        guide_errors={"taste": 1},
        guide_circuit={"taste": 0},
        reward_batch_size={"taste": sizes},
        reward_latency={"taste": seconds},
        remotes={"base": calling(scale)},
    )
    stats.rows_per_step.add(4)
    stats.strategies_per_step.add(2)
    return stats


def calling(scale: int = 1) -> RemoteStats:
    """Calls to another server, of which one failed after a second attempt, and three were cancelled."""
    stats = RemoteStats(calls=4 + 2 * scale, retries=1, failures={"connect": 2}, hedges=1, in_flight=3, waiting=4)
    for _ in range(2 * scale):
        stats.seconds.add(0.03)
    return stats


class Kept:
    """A store of three norms that was asked once."""

    def __init__(self) -> None:
        self.retrieval = Tally(SECONDS)
        self.retrieval.add(0.004)
        self.retrieved = 2

    def __len__(self) -> int:
        return 3


def answered(reason: str = "finished") -> Result:
    """A result of one steered choice out of two candidates."""
    steering = Steering(2, 0.1, 0.05, -1.0, -0.9, 0.5, branching_factor=2.0, branching_factor_base=3.0)
    candidates = (Candidate("a", 2, "stop", 1.0, 0), Candidate("b", 3, "length", 0.5, None))
    usage = Usage(2, 0, 2, {"base": 7}, {"base": 3}, {"queue": 20.0, "total": 90.0})
    return Result((Choice("a", (1, 2), "stop", None, None, steering),), candidates, usage, 1, reason)


def measured() -> Metrics:
    """Every method of the metrics was called."""
    engines = {"base": busy(), "other": busy(2)}
    metrics = Metrics(lambda: engines, Kept())
    timer = metrics.start("base", "best_of_n")
    for second in (1, 2):
        timer.observe(Delta(0, "a", (1,), None), timer.started + second)
    timer.observe(answered(), timer.started + 3)
    metrics.start("base", "sample").observe(Failure(RuntimeError()), timer.started)
    metrics.ended("/v1/chat/completions", 503, "base", "overloaded")
    metrics.chose("base", "best_of_4")
    metrics.spent("app", 7)
    metrics.reloaded(ok=True)
    return metrics


def exposed(metrics: Metrics) -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Type, labels and help of every family by its name in PromQL; buckets, sums and counts go by their histogram's."""
    found: dict[str, tuple[str, tuple[str, ...], str]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        if family.name.endswith("_created"):
            continue  # prometheus_client adds the time of birth to its own counters and histograms
        labels = {label: None for sample in family.samples for label in sample.labels if label != "le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, tuple(labels), family.documentation)
    return found
