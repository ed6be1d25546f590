"""What comes back, typed; `raw` is what the server sent, and `answer["name"]` reads from it what has no field here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A part of an answer and what the server sent for it."""

    raw: Mapping[str, Any] = field(repr=False, compare=False)

    def __getitem__(self, name: str) -> Any:
        """A field as the server sent it."""
        return self.raw[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage(Result):
    """Tokens read and delivered; what a search spent beyond that is `Decoding.model_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """of the prompt, those that were there from before"""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        details = raw.get("prompt_tokens_details") or {}
        return cls(
            raw=raw,
            prompt_tokens=raw["prompt_tokens"],
            completion_tokens=raw["completion_tokens"],
            cached_tokens=details.get("cached_tokens", 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Result):
    """An answer that may have become a choice."""

    tokens: int
    reward: float | None
    """None: it was not scored, or its guide failed"""
    finish_reason: str | None
    choice: int | None
    """its index among the choices"""
    text: str | None
    """under a search"""
    rewards: Mapping[str, float | None]
    """by guide, under a search"""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        return cls(
            raw=raw,
            tokens=raw["tokens"],
            reward=raw.get("reward"),
            finish_reason=raw.get("finish_reason"),
            choice=raw.get("choice"),
            text=raw.get("text"),
            rewards=raw.get("rewards") or {},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering(Result):
    """What steering did to one choice, in nats over its tokens."""

    tokens: int
    kl: float | None
    """KL(steered || base), summed over the positions"""
    kl_mean: float | None
    intervention_rate: float | None
    """share of tokens that the other model spoke, or of positions whose best token changed"""
    branching_factor: float | None
    """how many equally likely tokens a draw chose among: exp of the mean entropy per token"""
    branching_factor_base: float | None
    """the same of the base's own distributions"""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        return cls(
            raw=raw,
            tokens=raw["tokens"],
            kl=raw.get("kl"),
            kl_mean=raw.get("kl_mean"),
            intervention_rate=raw.get("intervention_rate"),
            branching_factor=raw.get("branching_factor"),
            branching_factor_base=raw.get("branching_factor_base"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrace(Result):
    """What shaped one token; there with `trace="tokens"`."""

    text: str
    source: str
    """who wrote it: base, steered, nudge or draft"""
    kl: float | None
    logprob_base: float | None
    logprob_steered: float | None
    best_of_base: str | None
    """the token that the base alone thought likeliest"""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        best = raw.get("top_base") or []
        return cls(
            raw=raw,
            text=raw["text"],
            source=raw["source"],
            kl=raw.get("kl"),
            logprob_base=raw.get("logprob_base"),
            logprob_steered=raw.get("logprob_steered"),
            best_of_base=best[0]["text"] if best else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeNode(Result):
    """A part of what a search wrote, with what it thought of the answer up to its end."""

    parent: int | None
    """index of a node before this one; None: the root"""
    text: str
    tokens: int
    """of its own"""
    value: float | None
    reward: float | None
    fate: str
    """chosen: on the way to a choice; kept: on the way to another candidate; pruned: given up"""
    candidate: int | None
    """index of the candidate that ends here"""
    choice: int | None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        names = ("parent", "text", "tokens", "value", "reward", "fate", "candidate", "choice")
        return cls(raw=raw, **{name: raw[name] for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree(Result):
    """All that a search wrote; there with `trace="search"`."""

    nodes: tuple[TreeNode, ...]
    """the root first, parents before children"""
    omitted: int
    """nodes that the server left out, of branches given up"""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        return cls(raw=raw, nodes=tuple(TreeNode.of(each) for each in raw["nodes"]), omitted=raw["omitted"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding(Result):
    """What the strategy did with one prompt, and what it cost."""

    strategy: str
    chosen: tuple[int | None, ...]
    """per choice, the index of its candidate; None for a refusal"""
    candidates: tuple[Candidate, ...]
    steering: tuple[Steering | None, ...]
    """per choice; None: nothing but sampling parameters shaped it"""
    trace: tuple[tuple[TokenTrace, ...], ...]
    """per choice, token by token; empty unless it was asked for"""
    tree: Tree | None
    """what the search wrote, if it was asked for"""
    report: Mapping[str, Any]
    """numbers of the search, under the names of its strategy"""
    model_tokens: int
    """tokens that all models together processed"""
    seconds: float
    """from the request's arrival to its answer"""
    stopped_by: str | None
    seed: int | None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        return cls(
            raw=raw,
            strategy=raw["spec"]["strategy"],
            chosen=tuple(raw["chosen"]),
            candidates=tuple(Candidate.of(each) for each in raw["candidates"]),
            steering=tuple(None if each is None else Steering.of(each) for each in raw.get("steering") or ()),
            trace=tuple(tuple(TokenTrace.of(token) for token in each) for each in raw.get("trace") or ()),
            tree=None if raw.get("tree") is None else Tree.of(raw["tree"]),
            report=raw.get("report") or {},
            model_tokens=sum(raw["model_tokens"].values()),
            seconds=raw["milliseconds"]["total"] / 1000,
            stopped_by=raw.get("stopped_by"),
            seed=raw.get("seed"),
        )

    def reward(self, choice: int = 0) -> float | None:
        """Reward of a choice's candidate; None where there is none."""
        chosen = self.chosen[choice] if choice < len(self.chosen) else None
        return None if chosen is None else self.candidates[chosen].reward

    def kl(self, choice: int = 0) -> float | None:
        """KL of a choice from the base in nats; None where nothing steered it, or it was not computed."""
        steering = self.steering[choice] if choice < len(self.steering) else None
        return None if steering is None else steering.kl


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one token under the base model; None for the first token of a text."""

    token: str
    logprob: float | None
    top: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the model asks for; `arguments` is JSON, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Result):
    """One of the answers to a request."""

    index: int
    text: str
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None
    tool_calls: tuple[ToolCall, ...]

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        """From a choice of a chat, which has a message, or of a text completion."""
        message = raw.get("message") or {"content": raw.get("text")}
        return cls(
            raw=raw,
            index=raw["index"],
            text=message["content"] or "",
            finish_reason=raw["finish_reason"],
            logprobs=logprobs_of(raw.get("logprobs")),
            tool_calls=tuple(
                ToolCall(each["id"], each["function"]["name"], each["function"]["arguments"])
                for each in message.get("tool_calls") or ()
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Result):
    """A complete answer; `decoding` says what the strategy did and what it cost.

    With several prompts `decodings` has an entry for each, and the choices of one prompt follow those of another.
    """

    choices: tuple[Choice, ...]
    usage: Usage
    decodings: tuple[Decoding, ...]
    model: str
    request_id: str | None

    @classmethod
    def of(cls, raw: Mapping[str, Any], request_id: str | None) -> Self:
        told = raw["decoding"]
        return cls(
            raw=raw,
            choices=tuple(Choice.of(each) for each in raw["choices"]),
            usage=Usage.of(raw["usage"]),
            decodings=tuple(Decoding.of(each) for each in (told if isinstance(told, list) else [told])),
            model=raw.get("model", ""),
            request_id=request_id,
        )

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text

    @property
    def finish_reason(self) -> str:
        """Finish reason of the first choice."""
        return self.choices[0].finish_reason

    @property
    def decoding(self) -> Decoding:
        """What was done with the first prompt."""
        return self.decodings[0]


@dataclass(frozen=True, slots=True)
class Label:
    """The likeliest label of an answer, and the probabilities of all labels of the guide."""

    name: str
    probs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens(Result):
    """Ids of a text's tokens."""

    ids: tuple[int, ...]
    max_model_len: int
    texts: tuple[str, ...] | None
    """of the tokens one by one, if they were asked for"""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        texts = raw.get("token_strs")
        return cls(
            raw=raw,
            ids=tuple(raw["tokens"]),
            max_model_len=raw["max_model_len"],
            texts=None if texts is None else tuple(texts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Guide(Result):
    """A model or program that requests may steer with."""

    name: str
    role: str
    scores_answers: bool
    scores_candidates: bool

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        return cls(
            raw=raw,
            name=raw["name"],
            role=raw["role"],
            scores_answers=raw["scores_answers"],
            scores_candidates=raw["scores_candidates"],
        )


def logprobs_of(raw: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...] | None:
    """Tokens with their log-probabilities, from the form of chats or that of text completions."""
    if raw is None:
        return None
    if "content" in raw:
        return tuple(
            TokenLogprob(each["token"], each["logprob"], _by_token(each["top_logprobs"]))
            for each in raw["content"] or ()
        )
    best: Sequence[Mapping[str, float] | None] = raw["top_logprobs"] or [None] * len(raw["tokens"])
    told = zip(raw["tokens"], raw["token_logprobs"], best, strict=True)
    return tuple(TokenLogprob(token, logprob, top or {}) for token, logprob, top in told)


def _by_token(best: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    return {each["token"]: each["logprob"] for each in best}
