"""Norms as rows of the table, and which rows a request may see."""

import itertools
import json
import sqlite3
from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple

from trimtab.decoders.library.clock import ticks, when
from trimtab.decoders.library.norm import Asked, Norm, StoredNorm

FIELDS = ("id", "text", "tags", "locale", "tenant", "topic", "valid_from", "valid_until", "version", "updated")
COLUMNS = ", ".join(f"n.{name}" for name in FIELDS)


class Filter(NamedTuple):
    """A condition on rows `n` of the table norms, and its values."""

    sql: str
    values: tuple[Any, ...]


def to_row(norm: Norm, version: int, updated: datetime) -> tuple[Any, ...]:
    """The values of FIELDS."""
    dates = (None if each is None else ticks(each) for each in (norm.valid_from, norm.valid_until))
    tags = json.dumps(norm.tags)
    return (norm.id, norm.text, tags, norm.locale, norm.tenant, norm.topic, *dates, version, ticks(updated))


def from_row(row: tuple[Any, ...]) -> StoredNorm:
    """A norm out of the values of FIELDS, which were checked when they were stored."""
    values = dict(zip(FIELDS, row, strict=True))
    values["tags"] = tuple(json.loads(values["tags"]))
    for name in ("valid_from", "valid_until", "updated"):
        if values[name] is not None:
            values[name] = when(values[name])
    return StoredNorm.model_construct(**values)


def marks(values: Collection[Any]) -> str:
    """A question mark for each value."""
    return ", ".join("?" * len(values))


def eligible(asked: Asked, now: datetime) -> Filter:
    """Norms that hold for who asks, where and when, without regard to tags."""
    valid = _valid(now)
    locales = _locales(asked.locale)
    return Filter(
        "(n.tenant IS NULL OR n.tenant = ?) AND (n.topic IS NULL OR n.topic = ?) "
        f"AND (n.locale IS NULL OR n.locale IN ({marks(locales)})) AND {valid.sql}",
        (asked.tenant, asked.topic, *locales, *valid.values),
    )


def tagged(asked: Asked, within: Filter) -> Filter:
    """Those of a filter's norms that have any of the tags; all of them where no tag is asked."""
    if not asked.tags:
        return within
    return Filter(
        f"{within.sql} AND EXISTS (SELECT 1 FROM tags t WHERE t.key = n.key AND +t.tag IN ({marks(asked.tags)}))",
        (*within.values, *asked.tags),
    )


def first_keys(connection: sqlite3.Connection, asked: Asked, now: datetime, limit: int) -> list[int]:
    """Keys of at most `limit` norms that hold and have the tags, found through the index that leads there."""
    if asked.tags:
        within = eligible(asked, now)
        rows = connection.execute(
            "SELECT DISTINCT n.key FROM tags t CROSS JOIN norms n ON n.key = t.key "
            f"WHERE t.tag IN ({marks(asked.tags)}) AND {within.sql} LIMIT ?",
            (*asked.tags, *within.values, limit),
        )
    else:
        valid = _valid(now)
        optional = [{None, asked.tenant}, {None, asked.topic}, {None, *_locales(asked.locale)}]
        scopes = list(itertools.product(*optional))
        rows = connection.execute(
            f"WITH scopes (tenant, topic, locale) AS (VALUES {', '.join(['(?, ?, ?)'] * len(scopes))}) "
            "SELECT n.key FROM scopes s CROSS JOIN norms n INDEXED BY norms_scope "
            "ON n.tenant IS s.tenant AND n.topic IS s.topic AND n.locale IS s.locale "
            f"WHERE {valid.sql} LIMIT ?",
            (*itertools.chain.from_iterable(scopes), *valid.values, limit),
        )
    return [key for (key,) in rows]


def _valid(now: datetime) -> Filter:
    moment = ticks(now)
    return Filter(
        "(n.valid_from IS NULL OR n.valid_from <= ?) AND (n.valid_until IS NULL OR n.valid_until > ?)",
        (moment, moment),
    )


def _locales(locale: str | None) -> tuple[str, ...]:
    """The locales of norms that serve this one: de and de-at for de-AT."""
    parts = locale.lower().replace("_", "-").split("-") if locale else []
    return tuple("-".join(parts[: i + 1]) for i in range(len(parts)))
