"""Function calls in a model's own words: which form its chat template teaches, and how an answer is read in it."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.grammar import FIELD as GRAMMAR_FIELD
from trimtab.engine.grammar import Grammar
from trimtab.engine.results import Choice
from trimtab.engine.vocabulary import Vocabulary
from trimtab.server.schema.chat import ChatRequest
from trimtab.server.schema.responses import ChatFinishReason
from trimtab.server.schema.tools import Tool


@dataclass(frozen=True, slots=True)
class Form:
    """How a model writes a call: a JSON object with `name` and `key`, between marks or alone."""

    key: str
    opening: str = ""
    closing: str = ""


HERMES = Form("arguments", "<tool_call>", "</tool_call>")
"""Hermes, Qwen: any number of calls, with text around them"""
LLAMA = Form("parameters")
"""Llama 3: the whole answer is one call, or several with semicolons between them"""


def form_of(template: str) -> Form | None:
    """The form of calls that a chat template teaches; None where it is none that can be read here."""
    text = template.replace("\\", "")
    if HERMES.opening in text:
        return HERMES if '"arguments"' in text and "<function=" not in text else None
    return LLAMA if '"name"' in text and '"parameters"' in text else None


@dataclass(frozen=True, slots=True)
class Call:
    """One call, with its arguments as the JSON text of an object."""

    name: str
    arguments: str

    def told(self) -> dict[str, Any]:
        """As a message has it, under a fresh id."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Calling:
    """The calls of one request: their form, the functions, and what is demanded."""

    form: Form
    tools: tuple[Tool, ...]
    one: bool
    """one call at most"""
    must: bool
    """the answer has to be a call"""
    answer: Grammar | None
    """of an answer that is no call, where the request wants one of a certain form"""

    @classmethod
    def of(cls, body: ChatRequest, vocabulary: Vocabulary) -> "Calling | None":
        """What a request asks for; raises InvalidRequest where the model's template has nothing of the kind."""
        tools = body.offered
        if not tools:
            return None
        template = vocabulary.tool_template
        if template is None:
            message = "the model's chat template does not tell it of tools: leave them out, or serve a model that has"
            raise InvalidRequest(f"{message} been trained to call them", param="tools", code="unsupported_parameter")
        form = form_of(template)
        if form is None:
            message = "the model's chat template writes calls in a form that cannot be read here: leave tools out"
            raise InvalidRequest(message, param="tools", code="unsupported_parameter")
        return cls(form, tools, body.one_call, body.must_call, None if body.must_call else body.grammar)

    @property
    def described(self) -> tuple[Mapping[str, Any], ...]:
        """The functions as the chat template takes them."""
        return tuple(tool.described() for tool in self.tools)

    def splitter(self) -> "Splitter":
        """A reader of one answer."""
        return Splitter(self.form, frozenset(tool.function.name for tool in self.tools), one=self.one)

    def split(self, text: str) -> tuple[str | None, list[Call]]:
        """Text and calls of a whole answer; None for the text of an answer that is nothing but calls."""
        splitter = self.splitter()
        pieces = [*splitter.push(text), *splitter.flush()]
        calls = [piece for piece in pieces if isinstance(piece, Call)]
        said = "".join(piece for piece in pieces if isinstance(piece, str))
        return said if said or not calls else None, calls

    def shown_tokens(self, vocabulary: Vocabulary) -> frozenset[int]:
        """The marks among the vocabulary's special tokens."""
        marks = (vocabulary.tokens.get(mark) for mark in (self.form.opening, self.form.closing))
        return frozenset(mark for mark in marks if mark in vocabulary.special_ids)

    def grammar(self, vocabulary: Vocabulary) -> Grammar | None:
        """Of the whole answer, where calls are demanded, or are to satisfy their schemas, or text is to have a form."""
        if self.must:
            start = "calls"
        elif self.answer is not None:
            start = "answer | calls"
        elif any(tool.function.strict for tool in self.tools):
            start = "spoken"
        else:
            return None
        lines = [f"start: {start}", *self._rules(start, vocabulary)]
        if self.answer is not None:
            lines.append(f"answer: %json {_spelled(json.loads(self.answer.source))}")
        for index, tool in enumerate(self.tools):
            # Cut as JSON is, since an answer may be JSON too: what is longest would win.
            head = ("{", '"name"', ": ", f'"{tool.function.name}"', ", ", f'"{self.form.key}"', ": ")
            lines.append(f'function_{index}: {" ".join(map(json.dumps, head))} arguments_{index} "}}"')
            nothing = {"properties": {}, "additionalProperties": False}
            schema = {"type": "object", **(tool.function.parameters or nothing)}
            lines.append(f"arguments_{index}: %json {_spelled(schema)}")
        lines.append("function: " + " | ".join(f"function_{index}" for index in range(len(self.tools))))
        return Grammar.lark("\n".join(lines) + "\n")

    def blamed(self, error: InvalidRequest) -> InvalidRequest | None:
        """What to say in place of an error in the grammar of calls, which nobody has sent; None for other errors."""
        if self.answer is not None or error.param != GRAMMAR_FIELD:
            return None
        return InvalidRequest(f"tools: {error}", param="tools", code=error.code)

    def _rules(self, start: str, vocabulary: Vocabulary) -> list[str]:
        """The rules for `calls`, or for `spoken`: calls with text around them. In llguidance's dialect of Lark."""
        form, special = self.form, self.shown_tokens(vocabulary)

        def mark(text: str) -> str:
            token = vocabulary.tokens.get(text)
            return f"<[{token}]>" if token in special else json.dumps(text)

        if not form.opening:
            more = "" if self.one else ' ("; " function)*'
            return [f"calls: function{more}", "spoken: WORDS | calls", r"WORDS: /(?s:\s*([^{\s].*)?)/"]
        rest = f'rest: "\\n" function "\\n" {mark(form.closing)}'
        if start != "spoken":
            more = "" if self.one else ' ("\\n" call)*'
            return [f"calls: call{more}", f"call: {mark(form.opening)} rest", rest]
        often = "?" if self.one else "*"
        if vocabulary.tokens.get(form.opening) in special:  # no text holds it
            return [f"spoken: WORDS ({mark(form.opening)} rest WORDS){often}", "WORDS: /(?s:.*)/", rest]
        return [
            f"spoken: (before rest){often} WORDS",
            f'before[suffix="{form.opening}"]: /(?s:.*)/',
            f"WORDS: /(?s:.*)/ & ~/(?s:.*{form.opening}.*)/",
            rest,
        ]


def _spelled(schema: Mapping[str, Any]) -> str:
    """A schema as JSON, whose values are spelled on one line."""
    spelling = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return json.dumps({**schema, "x-guidance": spelling})


def finish_reason(choice: Choice, *, called: bool) -> ChatFinishReason:
    """How an answer ended: with calls to be answered, if it ended by itself."""
    return "tool_calls" if called and choice.finish_reason == "stop" else choice.finish_reason


Piece = str | Call


class Splitter:
    """Takes an answer apart as it comes: text, and calls as soon as they are complete.

    However the answer is cut, the pieces are the same once neighbouring texts are joined. What is no call of an offered
    function stays text. Space beside a call is dropped, and so are calls behind the first where `one` is allowed.
    """

    def __init__(self, form: Form, names: frozenset[str], *, one: bool) -> None:
        self.calls = 0
        """calls returned so far"""
        self._form = form
        self._names = names
        self._one = one
        self._held = ""  # what may yet be, or become, a call
        self._inside = False
        self._plain = False  # the whole answer is text
        self._searched = 0  # of what is held, where the next closing mark may begin
        self._space = ""  # space that a call would swallow
        self._after_call = False

    def push(self, text: str) -> list[Piece]:
        """Take more of the answer and return what is certain now."""
        self._held += text
        pieces: list[Piece] = []
        if self._form.opening:
            while self._within(pieces) if self._inside else self._outside(pieces):
                pass
            return pieces
        if not (self._inside or self._plain) and self._held.strip():
            self._inside = self._held.lstrip().startswith("{")
            self._plain = not self._inside
        if self._plain:
            self._say(pieces, self._held)
            self._held = ""
        return pieces

    def flush(self) -> list[Piece]:
        """Return the rest: the answer has ended."""
        pieces: list[Piece] = []
        if self._inside:
            calls = self._alone() if not self._form.opening else [self._parse(self._held)]
            if all(calls):
                for call in calls:
                    self._call(pieces, call)
            else:
                self._say(pieces, self._form.opening + self._held)
        else:
            self._say(pieces, self._held)
        if self._space:
            pieces.append(self._space)
        self._held = self._space = ""
        return pieces

    def _outside(self, pieces: list[Piece]) -> bool:
        """Say what stands before the next opening mark; whether there is one."""
        before, mark, behind = self._held.partition(self._form.opening)
        if mark:
            self._say(pieces, before)
            self._held, self._inside, self._searched = behind, True, 0
            return True
        sure = len(self._held)
        for length in range(min(len(self._form.opening) - 1, sure), 0, -1):
            if self._form.opening.startswith(self._held[-length:]):
                sure -= length
                break
        self._say(pieces, self._held[:sure])
        self._held = self._held[sure:]
        return False

    def _within(self, pieces: list[Piece]) -> bool:
        """Read the call up to the next closing mark; whether there is one."""
        closing = self._form.closing
        end = self._held.find(closing, self._searched)
        if end < 0:
            self._searched = max(self._searched, len(self._held) - len(closing) + 1)
            return False
        inner = self._held[:end]
        call = self._parse(inner)
        if call is None and _cut_in_a_string(inner):
            self._searched = end + 1
            return True
        self._held, self._inside = self._held[end + len(closing) :], False
        if call is None:
            self._say(pieces, self._form.opening + inner + closing)
        else:
            self._call(pieces, call)
        return True

    def _alone(self) -> list[Call | None]:
        """The calls that the whole answer consists of; [None] if it is something else."""
        decoder, rest, calls = _decoder(), self._held.strip(), []
        while rest:
            try:
                value, end = decoder.raw_decode(rest)
            except (ValueError, RecursionError):
                return [None]
            calls.append(self._read(value))
            rest = rest[end:].lstrip()
            rest = rest.removeprefix(";").lstrip()
        return calls

    def _parse(self, text: str) -> Call | None:
        try:
            return self._read(_decoder().decode(text.strip()))
        except (ValueError, RecursionError):
            return None

    def _read(self, value: object) -> Call | None:
        """A JSON value as a call of one of the functions."""
        if not isinstance(value, dict) or not value.keys() <= {"name", self._form.key} or "name" not in value:
            return None
        name, arguments = value["name"], value.get(self._form.key, {})
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            return None
        try:
            text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
            text.encode()
        except ValueError:  # an infinite number, or half of a surrogate pair
            return None
        return Call(name, text)

    def _call(self, pieces: list[Piece], call: Call | None) -> None:
        assert call is not None
        self._space, self._after_call = "", True
        if not (self._one and self.calls):
            self.calls += 1
            pieces.append(call)

    def _say(self, pieces: list[Piece], text: str) -> None:
        """Return text; space at its end waits, since a call may follow."""
        if self._after_call:
            text = text.lstrip()
        if not text:
            return
        self._after_call = False
        text = self._space + text
        said = text.rstrip()
        self._space = text[len(said) :]
        if said:
            pieces.append(said)


def _decoder() -> json.JSONDecoder:
    """Of the JSON that models write: line breaks may stand in strings, and numbers are finite."""
    return json.JSONDecoder(strict=False, parse_constant=_refuse)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _cut_in_a_string(text: str) -> bool:
    """Whether JSON text ends within a string, so that a mark behind it belongs to the string."""
    try:
        _decoder().decode(text.strip())
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return False
    return False
