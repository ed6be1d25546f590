"""Grammars that answers must satisfy, through llguidance: what a request names, and how far one answer has come.

A grammar speaks of the answer's text. It is compiled over the exact bytes of a vocabulary, so that a token is allowed
when the text with it can still become one of the grammar's; no spelling is preferred. Ends are not llguidance's: it
sees one token behind the vocabulary as the only end, and where that is allowed every end of the request is.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.vocabulary import Vocabulary, check_unicode

if TYPE_CHECKING:  # loaded at the first grammar
    from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer

FIELD: Final = "response_format"
"""what errors name"""
MAX_SOURCE: Final = 65_536  # characters
MAX_LEVELS: Final = 512
"""schemas inside schemas, references followed: the compiler is recursive, and twice as many would end the process"""
MAX_RULES: Final = 500
"""colons of a Lark grammar, for the same reason"""
_KEPT: Final = 64  # compiled grammars of one vocabulary
_LEXER_STATES: Final = 20_000  # of one answer; each takes up to 2 kB
_SPACE: Final = r"[\x20\x0A\x0D\x09]{1,32}"  # between two marks of JSON: a model could write spaces forever
_OPTIONS: Final = '%llguidance {"no_forcing": true}'  # every spelling of the text, not the usual one alone
_EVERYTHING: Final = -1  # 32 tokens that are allowed

Start = Callable[[Vocabulary, Iterable[int]], "GrammarState"]
"""the state of an empty answer in a vocabulary, with the tokens that end it"""
Masks = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like. Made by its class methods; whether it can be compiled, `Grammars.start` finds."""

    kind: Literal["json_schema", "json_object", "lark", "regex"]
    source: str
    """as it was given; of a schema, its JSON"""

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Grammar:
        """JSON that a schema describes; its properties in the order in which it names them."""
        try:
            return cls("json_schema", json.dumps(schema, allow_nan=False, separators=(",", ":")))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"the schema is no JSON: {error}", param=FIELD) from error

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls("json_object", '{"type":"object"}')

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """A context-free grammar in llguidance's variant of Lark, whose first rule is `start`."""
        return cls("lark", text)

    @classmethod
    def regex(cls, text: str) -> Grammar:
        """Text that a regular expression matches as a whole."""
        return cls("regex", text)

    def compiled_text(self) -> str:
        """The grammar as llguidance reads it; raises InvalidRequest where it is too large or no text."""
        if len(self.source) > MAX_SOURCE:
            raise InvalidRequest(
                f"the grammar has {len(self.source)} characters and may have {MAX_SOURCE}: make it smaller", param=FIELD
            )
        check_unicode(self.source, param=FIELD)
        if self.kind == "lark":
            if self.source.count(":") > MAX_RULES:
                raise InvalidRequest(f"the grammar has more than {MAX_RULES} rules: make it smaller", param=FIELD)
            return f"{self.source}\n{_OPTIONS}\n"
        if self.kind == "regex":
            return f"start: {_rule(self.source)}\n{_OPTIONS}\n"
        schema = json.loads(self.source)
        if (levels := _levels(schema)) > MAX_LEVELS:
            raise InvalidRequest(
                f"the schema is {levels} levels deep, with what it refers to, and may be {MAX_LEVELS}: make it smaller",
                param=FIELD,
            )
        schema = {**schema, "x-guidance": {"whitespace_pattern": _SPACE}}
        return f"start: %json {json.dumps(schema)}\n{_OPTIONS}\n"


class GrammarState:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: LLMatcher, over: _Compiler, ends: frozenset[int], taken: int = 0) -> None:
        self.matcher = matcher
        self.ends = ends
        """tokens that end the answer and are no text"""
        self.over = over
        self._taken = taken

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return self.matcher.is_stopped() and not self.matcher.is_error()

    @property
    def error(self) -> InvalidRequest | None:
        """Why it can go on no further: the grammar takes too much work, or it was given what it forbids."""
        if not self.matcher.is_error():
            return None
        return InvalidRequest(f"the grammar cannot be followed: {_reason(self.matcher.get_error())}", param=FIELD)

    def fork(self) -> GrammarState:
        """An independent copy."""
        return GrammarState(self.matcher.deep_copy(), self.over, self.ends, self._taken)

    def take(self, token: int) -> None:
        """Go on by a token of the text; one that is forbidden shows as an `error`."""
        self._taken += self.matcher.consume_token(token)

    def trim(self, taken: int) -> None:
        """Take back all but the first `taken` tokens."""
        if taken < self._taken:
            self.matcher.rollback(self._taken - taken)
            self._taken = taken

    def fitting(self, tokens: Sequence[int]) -> int:
        """How many of these tokens may follow."""
        return self.matcher.validate_tokens(list(tokens))

    def may_end(self, tokens: Sequence[int] = ()) -> bool:
        """Whether the text may end, or may with these tokens after it."""
        ahead = self.matcher.deep_copy() if tokens else self.matcher
        return (not tokens or ahead.consume_tokens(list(tokens))) and ahead.is_accepting()


class Grammars:
    """Compiled grammars over the vocabularies that write under one. Works in any thread."""

    def __init__(self) -> None:
        self._compilers: WeakKeyDictionary[Vocabulary, _Compiler] = WeakKeyDictionary()
        self._lock = Lock()

    def start(self, grammar: Grammar, vocabulary: Vocabulary, ends: Iterable[int] = ()) -> GrammarState:
        """The state of an empty answer that `ends` end; raises InvalidRequest for what cannot be compiled."""
        with self._lock:
            compiler = self._compilers.get(vocabulary)
            if compiler is None:
                compiler = self._compilers[vocabulary] = _Compiler(vocabulary)
        return GrammarState(compiler.compile(grammar), compiler, frozenset(ends))


class _Compiler:
    """One vocabulary as llguidance knows it, and the grammars that were compiled over it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from llguidance import LLExecutor, LLParserLimits, LLTokenizer, TokenizerWrapper

        if not vocabulary.exact:
            raise InvalidRequest(
                "the model's tokenizer does not spell bytes exactly: leave the grammar out", param=FIELD
            )
        spelled = _Spelled(vocabulary)
        self.end = spelled.eos_token_id
        """id of the token that stands for every end"""
        self.executor: LLExecutor = LLExecutor()
        self._tokenizer: LLTokenizer = LLTokenizer(TokenizerWrapper(spelled), slices=LLTokenizer.json_slices())
        self._limits: LLParserLimits = LLParserLimits(max_lexer_states=_LEXER_STATES, verbose_errors=False)
        self._known: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = Lock()

    def compile(self, grammar: Grammar) -> LLMatcher:
        """A fresh matcher; raises InvalidRequest with llguidance's reason."""
        from llguidance import LLMatcher

        with self._lock:
            if grammar in self._known:
                self._known.move_to_end(grammar)
                return self._known[grammar].deep_copy()
        matcher = LLMatcher(self._tokenizer, grammar.compiled_text(), log_level=0, limits=self._limits)
        if matcher.is_error():
            raise InvalidRequest(f"the grammar cannot be used: {_reason(matcher.get_error())}", param=FIELD)
        if matcher.is_stopped():
            raise InvalidRequest("the grammar allows no text but the empty one: leave it out", param=FIELD)
        with self._lock:
            self._known[grammar] = matcher
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return matcher.deep_copy()


class _Spelled:
    """A vocabulary's bytes in the form that llguidance's wrapper asks for, with one more token, which ends a text."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.size
        self.tokens = [*map(vocabulary.token_bytes, range(vocabulary.size)), b"end"]
        self.special_token_ids = [
            *(id_ for id_ in sorted(vocabulary.special_ids) if id_ < vocabulary.size),
            vocabulary.size,
        ]

    def __call__(self, text: bytes) -> list[int]:
        """Spell a text; never asked for where no spelling is forced, but tried once."""
        return []


def token_masks(
    entries: Sequence[tuple[int, GrammarState, bool]], rows: int, vocab_size: int
) -> tuple[Masks, dict[int, InvalidRequest]]:
    """What each row may draw, (rows, ceil(V / 32)) int32, lowest bit first, and the rows that can go on no further.

    An entry is a row's number, its state, and whether an end is barred for now (`min_tokens`). Ends are allowed where
    the grammar is satisfied. If that leaves nothing the grammar wins: where it is satisfied the answer may end early,
    and else a text token is allowed although it ends the answer.
    """
    words = max((entry[1].over.end // 32 + 1 for entry in entries), default=0)
    words = max(words, -(-vocab_size // 32))
    masks = np.full((rows, words), _EVERYTHING, dtype=np.int32)
    places = [(state.matcher, row) for row, state, _ in entries]
    masks[[row for _, row in places]] = 0
    entries[0][1].over.executor.unsafe_compute_mask_ptr(places, masks.ctypes.data, masks.strides[0], rows)
    failed: dict[int, InvalidRequest] = {}
    for row, state, barred in entries:
        mask, error = masks[row], state.error
        satisfied = _has(mask, state.over.end)
        _clear(mask, (state.over.end,))
        text = mask.copy()
        _clear(mask, state.ends)
        if satisfied and not barred:
            _set(mask, state.ends)
        if not mask.any():
            mask[:] = text
            _set(mask, state.ends if satisfied else ())
        if error is None and not mask.any():
            error = InvalidRequest("no token of the model continues what the grammar allows: change it", param=FIELD)
        if error is not None:
            mask[:], failed[row] = _EVERYTHING, error
    return np.ascontiguousarray(masks[:, : -(-vocab_size // 32)]), failed


def _has(mask: Masks, token: int) -> bool:
    return bool(mask[token // 32] >> (token % 32) & 1)


def _set(mask: Masks, tokens: Iterable[int]) -> None:
    bits = mask.view(np.uint32)
    for token in tokens:
        bits[token // 32] |= np.uint32(1 << token % 32)


def _clear(mask: Masks, tokens: Iterable[int]) -> None:
    bits = mask.view(np.uint32)
    for token in tokens:
        bits[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)


def _rule(regex: str) -> str:
    """A regular expression between slashes; those inside it get a backslash, unless they have one."""
    return "/" + re.sub(r"\\.|/", lambda found: "\\/" if found[0] == "/" else found[0], regex, flags=re.DOTALL) + "/"


def _levels(schema: object) -> int:
    """No path through a schema is longer, whatever it refers to: each reference can be passed once."""
    refs: set[str] = set()
    own = _depth(schema, refs)
    known: dict[int, int] = {}  # by identity: thousands of references may point at one thing
    total = own
    for target in (_target(schema, ref) for ref in refs):
        if id(target) not in known:
            known[id(target)] = _depth(target, set())
        total += known[id(target)]
    return total


def _depth(value: object, refs: set[str]) -> int:
    """How deep objects and arrays nest; notes what they refer to."""
    deepest, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        deepest += 1
        refs |= {str(each["$ref"]) for each in level if isinstance(each, dict) and "$ref" in each}
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return deepest


def _target(schema: object, ref: str) -> object:
    """What a reference points at; the whole schema where that cannot be told."""
    found = schema
    for key in ref.removeprefix("#").split("/")[1:]:
        if not isinstance(found, dict) or key not in found:
            return schema
        found = found[key]
    return found


def _reason(message: str) -> str:
    """llguidance's message on one line, without the excerpt of the text that was made for it."""
    head = re.split(r"\n\s+\d+ \|", message, maxsplit=1)[0]
    head = re.sub(r"^at \d+\(\d+\): (?=failed to compile JSON schema|invalid regex)", "", head)
    return " ".join(head.removeprefix("failed to compile JSON schema: ").split())[:400]
