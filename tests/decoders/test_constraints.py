"""Constraints on text: which conditions count, and what is refused."""

import pytest
from pydantic import ValidationError

from trimtab.decoders.constraints import Constraint

TEXT = "The cat sat; the dog's C++ ran.\nÉcole"


@pytest.mark.parametrize(
    ("conditions", "share"),
    [
        ({"keywords": ["cat"]}, 1.0),
        ({"keywords": ["CAT", "  Dog "]}, 1.0),
        ({"keywords": ["ca"]}, 0.0),
        ({"keywords": ["at"]}, 0.0),
        ({"keywords": ["the dog"]}, 1.0),
        ({"keywords": ["c++"]}, 1.0),
        ({"keywords": ["école", "École", "cole"]}, 2 / 3),
        ({"keywords": ["r.n", "ran."]}, 0.5),
        ({"forbidden": ["cat"]}, 0.0),
        ({"forbidden": ["bird", "cat", "ca"]}, 2 / 3),
        ({"min_words": 8}, 1.0),
        ({"min_words": 9}, 0.0),
        ({"max_words": 8}, 1.0),
        ({"max_words": 7}, 0.0),
        ({"keywords": ["cat", "bird"], "forbidden": ["dog"], "min_words": 3, "max_words": 4}, 2 / 5),
    ],
)
def test_the_share_of_the_conditions_that_hold(conditions: dict[str, object], share: float) -> None:
    assert Constraint.model_validate(conditions).satisfied(TEXT) == pytest.approx(share)


def test_an_empty_text_meets_what_asks_for_nothing() -> None:
    given = {"keywords": ["a"], "forbidden": ["b"], "min_words": 0, "max_words": 0}
    assert Constraint.model_validate(given).satisfied("") == 0.75


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({}, "needs keywords"),
        ({"min_words": 5, "max_words": 4}, "more than max_words"),
        ({"keywords": [""]}, "at least 1 character"),
        ({"keywords": [" \n"]}, "pattern"),
        ({"keywords": ["a" * 101]}, "at most 100"),
        ({"forbidden": ["a"] * 33}, "at most 32"),
        ({"max_words": -1}, "greater than or equal to 0"),
        ({"keyword": ["a"]}, "Extra inputs"),
        ({"keywords": "cat"}, "valid tuple"),
    ],
)
def test_what_is_refused(conditions: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Constraint.model_validate(conditions)
