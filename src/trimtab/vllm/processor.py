"""The logits processor that vLLM loads: one class for both of its interfaces.

The V1 model runner calls `update_state` with what has changed in its batch and then `apply(logits)`; the V2 model
runner calls `add_request` for every request that gets a slot and then `apply(logits, context)`. Which of the two is
there shows in what the class is made with. Under tensor parallelism every rank has a processor and guides of its own;
nothing here is random and every order is that of rows, parts and configuration, so all ranks compute the same.
"""

import logging
from array import array
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from trimtab.engine.errors import InvalidRequest, ModelLoadError, TrimtabError
from trimtab.vllm.catalogue import Catalogue
from trimtab.vllm.history import DeviceHistory, History, HostHistory
from trimtab.vllm.interfaces import Added, Base, BatchUpdate, Context, Params, RequestStates
from trimtab.vllm.loading import check_base, load_guides
from trimtab.vllm.plans import TokenPlan, asks, check, read_plan
from trimtab.vllm.rows import Row, Rows, follow
from trimtab.vllm.settings import CONFIG, read_settings
from trimtab.vllm.steering import steer

logger = logging.getLogger(__name__)


class TrimtabProcessor(Base):
    """Steers the requests that ask for it by `trimtab` among their extra arguments."""

    def __init__(self, vllm_config: Any, where: torch.device | RequestStates, is_pin_memory: bool = False) -> None:
        """`where` is the device under V1, and what is known of the requests under V2.

        Raises ValueError for a vLLM that the plugin cannot work in, and for guides that cannot be loaded.
        """
        self._rows = Rows()
        self._told = False
        self._states = None if isinstance(where, torch.device) else where
        device = where if isinstance(where, torch.device) else where.device
        try:
            settings = read_settings()
            self._catalogue = None if settings is None else Catalogue.of(settings)
            if settings is None or self._catalogue is None:
                return
            _check_engine(vllm_config, two=self._states is not None)
            served = vllm_config.model_config
            check_base(self._catalogue, served.tokenizer, trust_remote_code=served.trust_remote_code)
            self._guides = load_guides(self._catalogue, settings, device, served.max_model_len)
        except TrimtabError as error:
            raise ValueError(f"trimtab: {error}") from error
        self._history: History = HostHistory(device) if self._states is None else DeviceHistory(self._states)
        self._eos = torch.tensor(sorted(_ends(served)), dtype=torch.int64, device=device)

    @classmethod
    def validate_params(cls, sampling_params: Params) -> None:
        """Raise ValueError, which names the field, for a request that cannot be served; called at admission."""
        _read_ahead()
        if not asks(sampling_params.extra_args):
            return
        try:
            check(sampling_params, _catalogue())
        except InvalidRequest as error:
            named = error.param is None or error.param in str(error)
            raise ValueError(str(error) if named else f"{error.param}: {error}") from error

    def is_argmax_invariant(self) -> bool:
        """V1: greedy requests are steered, too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """V1: follow the batch."""
        if batch_update is not None and self._catalogue is not None:
            follow(self._rows, batch_update, [self._added(each) for each in batch_update.added])

    def add_request(self, req_idx: int, sampling_params: Params) -> bool:
        """V2: a request gets a slot, in which another may have been; whether it is steered."""
        if self._catalogue is None:
            return False
        assert self._states is not None
        plan = self._plan(sampling_params, self._catalogue)
        prompt = int(self._states.prompt_len.np[req_idx])
        self._rows.put(req_idx, None if plan is None else self._open(Row(plan, slot=req_idx, prompt=prompt)))
        return plan is not None

    def apply_staged_writes(self) -> None:
        """V2: nothing is staged."""

    def apply(self, logits: Tensor, ctx: Context | None = None) -> Tensor:
        """Change the rows (B, V) of the requests that are steered, in place."""
        active = self._present() if ctx is None else self._scheduled(logits, ctx)
        if active:
            steer(logits, active, self._guides, self._history, self._eos)
        return logits

    def _added(self, added: Added) -> Row | None:
        """V1: the row of a request that has come, or has come back."""
        assert self._catalogue is not None
        _, params, prompt, output = added
        plan = self._plan(params, self._catalogue)
        if plan is None:
            return None
        tokens = array("q", prompt or ())
        return self._open(Row(plan, prompt=len(tokens), length=len(tokens), tokens=tokens, output=output))

    def _plan(self, params: Params, catalogue: Catalogue) -> TokenPlan | None:
        """The plan of a request; None where vLLM answers it alone.

        Admission has refused what cannot be served. Where it has read another file than this worker, an error would end
        vLLM for everybody: it is logged once, and the request is not steered.
        """
        try:
            return read_plan(params.extra_args, catalogue)
        except InvalidRequest as error:
            if not self._told:
                logger.error(
                    "a request that was admitted is not steered, and neither are others like it: %s. The file that "
                    "%s names, or a model in it, has changed since this worker started: restart vLLM",
                    error,
                    CONFIG,
                )
            self._told = True
            return None

    def _open(self, row: Row) -> Row:
        """The row with its guides at hand, which have read nothing yet."""
        row.readings = [self._guides[part.guide].open(row, alone=part.alone) for part in row.plan.parts]
        return row

    def _present(self) -> list[tuple[int, Row]]:
        """V1: the rows that are steered, with their places among the logits."""
        active = list(self._rows)
        for _, row in active:
            row.catch_up()
        return active

    def _scheduled(self, logits: Tensor, ctx: Context) -> list[tuple[int, Row]]:
        """V2: the same, by the slots of this step; prompts that are read in part have no next token yet."""
        assert self._states is not None
        slots = ctx.idx_mapping_np.tolist()
        if len(slots) != len(logits):
            raise RuntimeError("speculative decoding: trimtab steers one token per request and step; switch it off")
        active = []
        for place, (slot, length) in enumerate(zip(slots, ctx.seq_lens_upper_bound_np.tolist(), strict=False)):
            row = self._rows[slot]
            if row is not None and length >= self._states.prefill_len.np[slot]:
                row.length = length
                active.append((place, row))
        return active


@cache
def _read_ahead() -> None:
    """Let admission read the catalogue at the first request of all: workers read theirs when they start."""
    with suppress(Exception):  # requests that ask for the plugin are told; others are none of its business
        _catalogue()


@cache
def _catalogue() -> Catalogue:
    """What admission knows, read once per process; raises ValueError."""
    try:
        settings = read_settings()
        if settings is None:
            raise ValueError(f"trimtab sleeps in this vLLM, for want of a configuration: start it with {CONFIG}=FILE")
        return Catalogue.of(settings)
    except TrimtabError as error:
        raise ValueError(f"trimtab: {error}") from error


def _check_engine(vllm_config: Any, *, two: bool) -> None:
    """Raise ModelLoadError for modes of vLLM in which the answer's tokens are not known when they are needed."""
    if not two and vllm_config.scheduler_config.async_scheduling:
        raise ModelLoadError(
            "under asynchronous scheduling the V1 model runner shows placeholders in place of the answer's "
            "tokens: start vLLM with --no-async-scheduling"
        )
    if vllm_config.speculative_config is not None:
        raise ModelLoadError("it steers one token per request and step: start vLLM without speculative decoding")
    if vllm_config.model_config.enable_prompt_embeds:
        raise ModelLoadError("guides read tokens, not embeddings: start vLLM without --enable-prompt-embeds")


def _ends(model_config: Any) -> set[int]:
    """The tokens that end a text of the served model."""
    ends: set[int] = set()
    generation = model_config.try_get_generation_config()
    for value in (generation.get("eos_token_id"), getattr(model_config.hf_text_config, "eos_token_id", None)):
        ends.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return ends
