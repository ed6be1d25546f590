"""What an answer votes for, and how a vote stands (Wang et al. 2022, arXiv 2203.11171).

Reading a vote takes time linear in the text, whatever the text is; no pattern comes from a request.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb, fsum
from typing import Literal, assert_never

Extract = Literal["number", "boxed", "last_line", "text"]

# A hyphen after a word or a bracket joins or subtracts ("3-5"); only elsewhere is it a sign. None of the repeated parts
# is followed by something that may fail, so nothing is tried twice.
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])(?P<sign>[-\u2212])[$\u20ac\u00a3\u00a5]?)?"
    r"(?:(?P<whole>[0-9]{1,3}(?:,[0-9]{3}(?![0-9]))+|[0-9]+)(?:\.(?P<part>[0-9]+))?|(?<!\w)\.(?P<bare>[0-9]+))"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,3})(?![\w]))?"
)
_NUMBER_START = re.compile(r"-?\.?[0-9]")
_BRACES = re.compile(r"(?P<box>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)
_SPACING = re.compile(r"\\(?:[,;:!]|(?:left|right)(?![a-zA-Z]))")
_AROUND_SIGNS = re.compile(r" ?([^\w ]) ?")
_UPRIGHT = re.compile(r"\\(?:text|textbf|mathrm|mathbf) ?\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Group:
    """The answers that vote for the same."""

    vote: str
    members: tuple[int, ...]
    """indices into the pool, the preferred one first"""
    weight: float


def extract_vote(text: str, how: Extract) -> str | None:
    """What an answer votes for, normalised so that equal votes are equal strings; None: it votes for nothing.

    `number` is the last number in the text (1,234.50 is 1234.5), `boxed` what the last closed \\boxed{...} holds,
    `last_line` the last line that is not empty, `text` all of it, both without case and outer punctuation.
    """
    if how == "number":
        return _number(text)
    if how == "boxed":
        return _boxed(text)
    if how == "last_line":
        return next(filter(None, map(normalise, reversed(text.splitlines()))), None)
    if how == "text":
        return normalise(text) or None
    assert_never(how)


def normalise(text: str) -> str:
    """Casefolded, with single spaces, without punctuation around it; what belongs to a number stays (-5, .5, 50%)."""
    text = " ".join(text.casefold().replace("\u2212", "-").split())
    start, end = 0, len(text)
    while start < end and _outer(text[start]) and not _NUMBER_START.match(text, start):
        start += 1
    while start < end and _outer(text[end - 1]) and not (text[end - 1] == "%" and text[end - 2].isdigit()):
        end -= 1
    return text[start:end]


def tally(votes: Sequence[str | None], weights: Sequence[float], preference: Sequence[int]) -> list[Group]:
    """The groups of equal votes, heaviest first; `preference` lists all indices and settles what is level."""
    members: dict[str, list[int]] = {}
    for index in preference:
        vote = votes[index]
        if vote is not None:
            members.setdefault(vote, []).append(index)
    groups = [Group(vote, tuple(each), fsum(weights[index] for index in each)) for vote, each in members.items()]
    return sorted(groups, key=lambda group: -group.weight)


def told(groups: Sequence[Group], most: int = 5) -> list[dict[str, str | float]]:
    """The heaviest groups for a report: the vote, cut where it is long, its answers, and its share of the weight."""
    total = fsum(group.weight for group in groups) or 1.0
    return [
        {"vote": group.vote[:80], "answers": len(group.members), "share": group.weight / total}
        for group in groups[:most]
    ]


def lead_probability(first: int, second: int) -> float:
    """P(p1 > p2) of two answers with these votes, p1 ~ Beta(first + 1, second + 1) and p2 = 1 - p1.

    The stopping rule of Adaptive-Consistency (Aggarwal et al. 2023, arXiv 2305.11860): 1 - I_{1/2}(first + 1,
    second + 1), which for whole numbers is a binomial sum: at most `first` heads in first + second + 1 fair throws.
    """
    throws = first + second + 1
    return float(Fraction(sum(comb(throws, heads) for heads in range(first + 1)), 2**throws))


def _number(text: str) -> str | None:
    last = deque(_NUMBER.finditer(text), maxlen=1)
    return _canonical(last[0]) if last else None


def _canonical(number: "re.Match[str]") -> str:
    """A number without zeros that say nothing, thousands separators or exponent; digits are kept exactly."""
    whole = (number["whole"] or "").replace(",", "")
    part = number["part"] or number["bare"] or ""
    digits, point = whole + part, len(whole) + int(number["exponent"] or 0)
    point -= len(digits) - len(digits.lstrip("0"))
    digits = digits.strip("0")
    if not digits:
        return "0"
    whole = digits[: max(point, 0)].ljust(point, "0") or "0"
    part = "0" * -point + digits if point < 0 else digits[point:]
    return ("-" if number["sign"] else "") + whole + ("." + part if part else "")


def _boxed(text: str) -> str | None:
    r"""The last \boxed{...} to open that is closed again; an escaped brace is no brace."""
    opened: list[int | None] = []
    start, end = -1, -1
    for found in _BRACES.finditer(text):
        if found["box"] is not None:
            opened.append(found.end())
        elif found[0] == "{":
            opened.append(None)
        elif found[0] == "}" and opened:
            box = opened.pop()
            if box is not None and box > start:
                start, end = box, found.start()
    return _plain(text[start:end]) or None if end >= 0 else None


def _plain(formula: str) -> str:
    """What a box holds, without LaTeX that only sets it: spaces, sizes of brackets, upright type around all of it."""
    formula = " ".join(_SPACING.sub("", formula).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").split())
    formula = _AROUND_SIGNS.sub(r"\1", formula.strip(" $"))
    upright = _UPRIGHT.fullmatch(formula)
    formula = formula if upright is None else upright[1].strip()
    number = _NUMBER.fullmatch(formula)
    return formula if number is None else _canonical(number)


def _outer(character: str) -> bool:
    """Whether it says nothing at the ends of an answer: punctuation, and what marks text up."""
    return unicodedata.category(character).startswith("P") or character in " `$~"
