"""Stored preferences of requests: read once, so that what a policy reviews is what runs."""

from collections.abc import Mapping
from typing import Any

from trimtab.decoders.preference import Personal, Preference, is_shared


def names_profile(decoding: Mapping[str, Any]) -> bool:
    """Whether a `decoding` object takes its preference from a profile."""
    preference = decoding.get("preference")
    return is_shared(preference) and "profile" in preference


def with_profile(decoding: Mapping[str, Any], personal: Personal) -> dict[str, Any]:
    """The same with the preference itself in the place of the profile's id; InvalidRequest if there is none."""
    stored = Preference.parse(decoding["preference"]).stored(personal)
    return {**decoding, "preference": stored.model_dump(exclude_none=True)}
