"""Where a section of the GPU benchmark runs, and how time is taken there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

Run = Callable[[], object]


@dataclass(frozen=True)
class Place:
    """A GPU, or with `dry` the CPU, where every path runs once on tiny shapes and times mean nothing."""

    dry: bool
    budget: float
    """seconds that a section may take"""
    began: float = field(default_factory=perf_counter)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (perf_counter() - self.began)

    @property
    def cache(self) -> int:
        """Bytes of the second-level cache."""
        return 2**16 if self.dry else torch.cuda.get_device_properties(0).L2_cache_size

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if not self.dry:
            torch.cuda.synchronize()

    def random(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> Tensor:
        """Normal numbers."""
        return (torch.randn(*shape, device=self.device) * scale).to(dtype)


def replayed(place: Place, runs: Sequence[Run], *, total: float = 0.03) -> float:
    """Seconds of one of `runs`, which are captured in one CUDA graph; the best of three rounds of `total` seconds.

    On the CPU they are called one after another.
    """
    if place.dry:
        return _called(place, runs)
    warm_up(runs[:1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    graph.replay()
    once = _events(graph.replay, 1)
    repeats = max(1, min(1000, round(total / once)))
    return min(_events(graph.replay, repeats) for _ in range(3)) / repeats / len(runs)


def launched(place: Place, run: Run, *, repeats: int = 20) -> float:
    """Seconds of `run` as it is called from Python, again and again; the best of three rounds."""
    if place.dry:
        return _called(place, [run])
    warm_up([run])
    return min(_events(run, repeats) for _ in range(3)) / repeats


def warm_up(runs: Sequence[Run]) -> None:
    """Run on a stream of its own what is going to be captured: kernels are compiled, libraries set up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for run in runs:
            for _ in range(3):
                run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


def _called(place: Place, runs: Sequence[Run]) -> float:
    began = perf_counter()
    for run in runs:
        run()
    place.synchronize()
    return (perf_counter() - began) / len(runs)


def _events(run: Run, repeats: int) -> float:
    """Seconds of `repeats` runs, by the GPU's clock."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        run()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1e3
