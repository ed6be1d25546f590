"""What a request says about drawing one token, independent of any decoding method."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

TokenId = Annotated[int, Field(ge=0)]
MAX_COUNT = 2**31 - 1
LONGEST_STOP = 1000
"""characters: every token is compared with every beginning of a stop string"""
MAX_LOGPROBS = 20
"""alternatives per token"""
GREEDY_BELOW = 1e-4
"""temperatures below this are greedy: logits divided by them would leave the range of float32"""


class SamplingParams(BaseModel):
    """Sampling of one request, under the names of the OpenAI API and, for the extras, of vLLM.

    Order of application: repetition, presence and frequency penalties and `logit_bias`, then temperature,
    min-p, top-k, top-p. Presence and frequency penalties count generated tokens; the repetition penalty
    (CTRL, arXiv 1909.05858) also counts the prompt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Annotated[float, AfterValidator(lambda t: t if t >= GREEDY_BELOW else 0.0)] = Field(
        1.0, ge=0.0, le=2.0, description="0 is greedy"
    )
    top_k: int = Field(0, ge=0, le=MAX_COUNT, description="keep the k most likely tokens; 0 keeps all")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="nucleus mass")
    min_p: float = Field(0.0, ge=0.0, le=1.0, description="drop tokens below min_p times the top probability")
    repetition_penalty: float = Field(1.0, gt=0.0, le=10.0)
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100.0, le=100.0)]] = Field(default_factory=dict)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="drawn at random when absent")
    max_tokens: int | None = Field(None, ge=0, le=MAX_COUNT, description="as many as the context holds when absent")
    min_tokens: int = Field(0, ge=0, le=MAX_COUNT, description="EOS and stop tokens are not drawn before")
    stop: tuple[Annotated[str, Field(max_length=LONGEST_STOP)], ...] = Field((), max_length=4)
    stop_token_ids: tuple[TokenId, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="top alternatives per token; 0: only the drawn one"
    )
