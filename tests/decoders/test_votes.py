"""What answers vote for: what counts as the same answer, on any text, and how sure a lead is."""

import time
from math import comb

import numpy as np
import pytest

from trimtab.decoders.votes import Extract, extract_vote, lead_probability, normalise, tally, told


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ("It costs 1,234.50 in all.", "1234.5"),
        ("first 3, then 42.", "42"),
        ("-0.0", "0"),
        ("x=-5", "-5"),
        ("\u22127", "-7"),
        ("a range of 3-5", "5"),
        ("f(2)-1", "1"),
        ("-$1,000 in total", "-1000"),
        ("007", "7"),
        ("100", "100"),
        (".50", "0.5"),
        ("1.5e-3 m", "0.0015"),
        ("2E3", "2000"),
        ("12e2000", "2000"),
        ("1,2345", "2345"),
        ("12345,678", "678"),
        ("0." + "0" * 1200 + "1", "0." + "0" * 1200 + "1"),
        ("123456789012345678901234567890.10", "123456789012345678901234567890.1"),
        ("no digits at all", None),
        ("", None),
    ],
)
def test_the_last_number_is_normalised(text: str, vote: str | None) -> None:
    assert extract_vote(text, "number") == vote


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        (r"so \boxed{4} or \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{3}, no: \boxed{1 {2}", "3"),
        (r"\boxed{\boxed{ 1,000.0 }}", "1000"),
        (r"\boxed {\text{Paris}}", "Paris"),
        (r"\boxed{New  York}", "New York"),
        (r"\boxed{x + 1}", "x+1"),
        (r"\boxed{$42$}", "42"),
        (r"\boxed{\{1, 2\}}", r"\{1,2\}"),
        (r"\boxed{\}}", r"\}"),
        (r"\boxed{\left( 1,\, 2 \right)}", "(1,2)"),
        (r"\boxed{}", None),
        (r"\boxed{7", None),
        ("7 }", None),
    ],
)
def test_the_last_closed_box_counts(text: str, vote: str | None) -> None:
    assert extract_vote(text, "boxed") == vote


@pytest.mark.parametrize(
    ("text", "line", "whole"),
    [
        ("Think.\nThe answer is:  Paris.\n\n ---\n", "the answer is: paris", "think. the answer is: paris"),
        ("**Paris**", "paris", "paris"),
        ("(b)", "b", "b"),
        ("-5.", "-5", "-5"),
        ("\u22125", "-5", "-5"),
        ("'.5'", ".5", ".5"),
        ("50%!", "50%", "50%"),
        ("Stra\u00dfe", "strasse", "strasse"),
        (" ...\n!", None, None),
        ("", None, None),
    ],
)
def test_lines_and_texts_compare_without_case_and_outer_punctuation(
    text: str, line: str | None, whole: str | None
) -> None:
    assert extract_vote(text, "last_line") == line
    assert extract_vote(text, "text") == whole


def test_numbers_that_differ_stay_different() -> None:
    texts = ["5", "-5", "0.5", "50", "5%"]
    for how in ("last_line", "text"):
        assert len({extract_vote(text, how) for text in texts}) == len(texts)


HOSTILE = [
    "1,",
    "1,111",
    "9",
    "-",
    r"\boxed{",
    r"\boxed ",
    "{",
    "}",
    "\\",
    " ",
    ".",
    "1e",
    "1.",
    "\n",
    "*\n",
    "%",
    "$ ",
]


@pytest.mark.parametrize("how", ["number", "boxed", "last_line", "text"])
def test_time_is_linear_in_the_text(how: Extract) -> None:
    """A linear reader takes milliseconds for each of these."""
    for piece in HOSTILE:
        begin = time.perf_counter()
        extract_vote(piece * (100_000 // len(piece)), how)
        extract_vote("x" + piece * (100_000 // len(piece)) + "x", how)
        assert time.perf_counter() - begin < 5.0, repr(piece)


def test_groups_are_ordered_by_weight_and_then_by_preference() -> None:
    votes = ["a", "b", None, "a", "b", "c"]
    groups = tally(votes, [1.0, 2.0, 9.0, 1.0, 0.0, 2.5], preference=[4, 5, 3, 2, 1, 0])
    assert [(group.vote, group.members, group.weight) for group in groups] == [
        ("c", (5,), 2.5),
        ("b", (4, 1), 2.0),
        ("a", (3, 0), 2.0),
    ]
    assert told(groups, most=2) == [
        {"vote": "c", "answers": 1, "share": 2.5 / 6.5},
        {"vote": "b", "answers": 2, "share": 2.0 / 6.5},
    ]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 0), (3, 1), (1, 3), (10, 4), (40, 25)])
def test_the_lead_is_the_tail_of_a_beta_distribution(first: int, second: int) -> None:
    """Gauss-Legendre quadrature of p^first (1 - p)^second over [1/2, 1], exact for polynomials of this degree."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    p = 0.75 + nodes / 4
    tail = (weights / 4 * p**first * (1 - p) ** second).sum()
    whole = 1 / ((first + second + 1) * comb(first + second, first))
    assert lead_probability(first, second) == pytest.approx(tail / whole, rel=1e-10)


def test_the_lead_is_symmetric_and_bounded_for_many_votes() -> None:
    assert lead_probability(3, 0) == 1 - 2**-4
    assert lead_probability(7, 5) + lead_probability(5, 7) == pytest.approx(1)
    assert lead_probability(2000, 100) == 1.0


def test_normalising_twice_changes_nothing() -> None:
    for text in ("  **A  b**, c.", "-5%", "'.5'", "?!", "--.5"):
        assert normalise(normalise(text)) == normalise(text)
