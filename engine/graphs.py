"""Decode forwards as CUDA graphs: one launch instead of hundreds.

A graph replays the same kernels over the same addresses. So a forward runs over static inputs, padded to a bucket of
rows and a bucket of pages per row: padded rows read token 0 at position 0 and write to the trash page. Outputs land in
static buffers that all graphs of a model share, and a caller has to be done with them before its next decode.
"""

import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from trimtab.engine.kv import IntArray, Plan, Step
from trimtab.engine.staging import Field, pack, packed_size, unpack
from trimtab.kernels.paged_attention import AttentionPlan

logger = logging.getLogger(__name__)

FIRST_WIDTH = 32
"""pages per row of the narrowest graphs; the next ones are four times as wide, each"""

MAX_FRAMES = 64
"""graphs of one model; the one that was unused for longest is given up for a new one"""

Run = Callable[[], None]


class Capture(Protocol):
    """How a forward becomes something to replay."""

    def warm(self, run: Run) -> None:
        """Run the forward once as it is; raises RuntimeError if it cannot be captured."""

    def capture(self, run: Run) -> Run:
        """Record what `run` does, without doing it; what is returned does it. Raises RuntimeError if it cannot."""

    def settle(self) -> None:
        """Wait until nothing runs any more."""


class CudaCapture:
    """CUDA graphs in a memory pool of their own: those of one model never run at the same time, so they share it."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def warm(self, run: Run) -> None:
        """Compiles kernels and fills caches; an operation that waits for the GPU raises."""
        before = torch.cuda.get_sync_debug_mode()
        _report_waits("error")
        try:
            run()
        finally:
            _report_waits(before)

    def capture(self, run: Run) -> Run:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                run()
        finally:
            torch.cuda.set_stream(stream)  # a capture that failed leaves its own behind
        return graph.replay

    def settle(self) -> None:
        torch.cuda.synchronize()


class Frame:
    """The static inputs of one bucket, and what replays its forward."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        wide, narrow = Field((rows, 1), torch.int64), Field((rows, 1), torch.int32)
        table = Field((rows, width), torch.int32)
        self._fields = [wide, wide, Field((rows,), torch.int64), table, narrow, narrow]
        self._packed = torch.zeros(packed_size(self._fields), dtype=torch.uint8, device=device)
        self.ids, positions, slots, blocks, places, own = unpack(self._packed, self._fields)
        self.step = Step(positions, slots, AttentionPlan(blocks, places, own))
        self.rows = rows
        self.warm = False
        self.replay: Run | None = None

    def fill(self, plan: Plan, ids: IntArray) -> None:
        """Write the inputs of up to `rows` rows, and padding behind them, in one copy."""
        arrays = [ids, plan.positions, plan.slots, plan.blocks, plan.positions, plan.own]
        self._packed.copy_(pack(arrays, self._fields, pinned=self._packed.is_cuda), non_blocking=True)


class DecodeGraphs:
    """The captured decode forwards of one model, by rows, pages per row and what sets rows apart.

    A forward is captured at the second use of its bucket; the first one runs as it is and warms up.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, Step], tuple[Tensor, Tensor]],
        capture: Capture,
        *,
        rows: int,
        device: torch.device,
    ) -> None:
        """`forward` takes ids (B, 1) and a step and gives logits (B, V) and hidden states (B, D), B up to `rows`."""
        self._forward = forward
        self._capture = capture
        self._most = rows
        self._device = device
        self._broken = False
        self._frames: OrderedDict[Hashable, Frame] = OrderedDict()
        self._outputs: list[Tensor] = []  # logits and hidden states of the largest batch, once their dtypes are known

    @property
    def rows(self) -> int:
        """The largest batch that can be run; 0 if the model cannot be captured."""
        return 0 if self._broken else self._most

    def bucket(self, rows: int) -> int:
        """Rows of the graph that runs `rows`: small ones fit closely, large ones within a third."""
        step = 1 << max(0, (rows - 1).bit_length() - 2) if rows > 8 else 1 << (rows - 1).bit_length()
        return min(self._most, -(-rows // step) * step)

    def run(self, plan: Plan, ids: IntArray, signature: Hashable) -> tuple[Tensor, Tensor]:
        """Logits and hidden states of `ids` (n, 1), padded to their bucket; valid until the next call.

        `signature` is what the kernels of the forward depend on, beyond the shapes.
        """
        frame = self._frame(self.bucket(len(ids)), _width(plan.blocks.shape[1]), signature)
        frame.fill(plan, ids)
        run = partial(self._run, frame)
        if frame.replay is not None:
            frame.replay()
        else:
            try:
                if frame.warm:
                    frame.replay = self._capture.capture(run)
                    frame.replay()
                else:
                    self._capture.warm(run)
                    frame.warm = True
            except RuntimeError as error:
                logger.warning("a model decodes without CUDA graphs: %s", str(error).partition("\n")[0])
                self.drop()
                self._broken = True
                self._run(frame)
        logits, hidden = self._outputs
        return logits[: len(ids)], hidden[: len(ids)]

    def drop(self) -> None:
        """Forget every graph, because the model has changed."""
        if self._frames:
            self._capture.settle()
            self._frames.clear()

    def _frame(self, rows: int, width: int, signature: Hashable) -> Frame:
        key = (rows, width, signature)
        if key in self._frames:
            self._frames.move_to_end(key)
        else:
            if len(self._frames) == MAX_FRAMES:
                self._capture.settle()
                self._frames.popitem(last=False)
            self._frames[key] = Frame(rows, width, self._device)
        return self._frames[key]

    def _run(self, frame: Frame) -> None:
        found = self._forward(frame.ids, frame.step)
        if not self._outputs:  # never within a capture: a forward runs as it is first
            self._outputs = [each.new_empty((self._most, *each.shape[1:])) for each in found]
        for output, each in zip(self._outputs, found, strict=True):
            output[: frame.rows].copy_(each)


def _width(pages: int) -> int:
    width = FIRST_WIDTH
    while width < pages:
        width *= 4
    return width


def _report_waits(mode: int | str) -> None:
    with warnings.catch_warnings():  # torch calls this mode a prototype
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)
