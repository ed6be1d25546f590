"""Requests and responses of POST /v1/score and /v1/classify; texts and answers in vLLM's form."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic.config import JsonDict

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.rewards import Pair
from trimtab.engine.vocabulary import Message
from trimtab.server.schema.base import Wire, exactly_one
from trimtab.server.schema.chat import MAX_MESSAGES, ChatMessage
from trimtab.server.schema.responses import PromptTokensDetails


def _branch(value: object) -> str:
    return "(text)" if isinstance(value, str) else "(texts)"


Texts = Annotated[Annotated[str, Tag("(text)")] | Annotated[list[str], Tag("(texts)")], Discriminator(_branch)]


class AnswerPair(Wire):
    """One answer, and the prompt or the conversation that it answers."""

    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)
    answer: str

    model_config = ConfigDict(
        json_schema_extra=exactly_one({"prompt": {"type": "string"}}, {"messages": {"type": "array"}})
    )

    def to_pair(self, param: str) -> Pair:
        """As rewards take it; `param` is where it stands in the request."""
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest(f"{param} needs either prompt or messages beside the answer", param=param)
        if self.prompt is not None:
            return _asked(self.prompt, self.answer)
        return Pair(tuple(message.to_message() for message in self.messages or ()), self.answer)


class AnswersRequest(Wire):
    """Answers for one reward guide: pairs, or conversations that end with the answer."""

    model: str
    pairs: list[AnswerPair] | None = None
    conversations: list[list[ChatMessage]] | None = None
    user: str | None = None

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {"priority": (0,), "truncate_prompt_tokens": (-1,)}

    def forms(self) -> dict[str, list[Pair] | None]:
        """The answers by the field that they came in; None: the field was not given."""
        pairs = ended = None
        if self.pairs is not None:
            pairs = [pair.to_pair(f"pairs[{index}]") for index, pair in enumerate(self.pairs)]
        if self.conversations is not None:
            ended = [_ended(each, f"conversations[{index}]") for index, each in enumerate(self.conversations)]
        return {"pairs": pairs, "conversations": ended}

    def answers(self, limit: int) -> list[Pair]:
        """Every answer; InvalidRequest unless they come in one form and are from 1 to `limit`."""
        forms = self.forms()
        given = {name: answers for name, answers in forms.items() if answers is not None}
        if len(given) != 1:
            message = f"give the answers in exactly one of {', '.join(forms)}"
            raise InvalidRequest(message, param=next(reversed(given), "pairs"))
        ((name, answers),) = given.items()
        if not answers:
            raise InvalidRequest(f"{name} is empty: give at least one answer", param=name, code="invalid_value")
        if len(answers) > limit:
            message = f"{name} may hold {limit} answers at most (server.limits.max_pairs), not {len(answers)}"
            raise InvalidRequest(message, param=name, code="invalid_value")
        return answers


_SOME: JsonDict = {"type": "array", "minItems": 1}
_TEXTS: JsonDict = {"anyOf": [{"type": "string"}, _SOME]}
_FORMS: tuple[JsonDict, ...] = ({"pairs": _SOME}, {"conversations": _SOME})


class ScoreRequest(AnswersRequest):
    """Answers to be scored; or `text_1`, prompts, with `text_2`, their answers, of which one may stand for all."""

    text_1: Texts | None = None
    text_2: Texts | None = None

    model_config = ConfigDict(json_schema_extra=exactly_one(*_FORMS, {"text_1": _TEXTS, "text_2": _TEXTS}))

    def forms(self) -> dict[str, list[Pair] | None]:
        """The answers by the field that they came in; None: the field was not given."""
        return super().forms() | {"text_2": self._texts()}

    def _texts(self) -> list[Pair] | None:
        if self.text_1 is None and self.text_2 is None:
            return None
        if self.text_1 is None or self.text_2 is None:
            missing = "text_1" if self.text_1 is None else "text_2"
            raise InvalidRequest(f"{missing} is required: text_1 are prompts and text_2 their answers", param=missing)
        prompts, answers = _listed(self.text_1), _listed(self.text_2)
        if len(prompts) == 1:
            prompts = prompts * len(answers)
        elif len(answers) == 1:
            answers = answers * len(prompts)
        if len(prompts) != len(answers):
            message = f"text_1 has {len(prompts)} texts and text_2 has {len(answers)}: give as many, or one of either"
            raise InvalidRequest(message, param="text_2", code="invalid_value")
        return [_asked(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


class ClassifyRequest(AnswersRequest):
    """Answers to be classified; or `input`, texts that answer nothing."""

    input: Texts | None = None

    model_config = ConfigDict(json_schema_extra=exactly_one(*_FORMS, {"input": _TEXTS}))

    def forms(self) -> dict[str, list[Pair] | None]:
        """The answers by the field that they came in; None: the field was not given."""
        texts = None if self.input is None else [Pair((), text) for text in _listed(self.input)]
        return super().forms() | {"input": texts}


class ScoringUsage(BaseModel):
    """Tokens of all answers with their conversations, as far as the guide's context holds them."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Scored(BaseModel):
    """The score of one answer."""

    index: int
    object: Literal["score"] = "score"
    score: float


class Classified(BaseModel):
    """The likeliest label of one answer, and the probabilities of all."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class _Scoring(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    system_fingerprint: str
    usage: ScoringUsage


class ScoreList(_Scoring):
    """Response of /v1/score."""

    data: list[Scored]


class ClassifyList(_Scoring):
    """Response of /v1/classify."""

    data: list[Classified]


def _ended(conversation: list[ChatMessage], param: str) -> Pair:
    """A conversation with its last message as the answer."""
    if not conversation or conversation[-1].role != "assistant":
        raise InvalidRequest(f"{param} must end with a message of role assistant, which is scored", param=param)
    *messages, answer = [message.to_message() for message in conversation]
    return Pair(tuple(messages), answer["content"])


def _asked(prompt: str, answer: str) -> Pair:
    return Pair((Message(role="user", content=prompt),), answer)


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
