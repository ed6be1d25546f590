"""What users prefer, kept under an id of the caller's until it is erased."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from trimtab.decoders.library.clock import ticks
from trimtab.decoders.library.database import Database
from trimtab.decoders.library.errors import NotFound


class Profiles:
    """Preferences by tenant (None: callers without a key) and id; JSON objects, which the caller has checked."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, tenant: str | None, id_: str) -> dict[str, Any]:
        """One preference; raises NotFound."""
        with self._database.read() as c:
            row = c.execute(
                "SELECT preference FROM profiles WHERE tenant = ? AND id = ?", (tenant or "", id_)
            ).fetchone()
        if row is None:
            raise NotFound(f"there is no profile {id_!r}: put one first")
        preference: dict[str, Any] = json.loads(row[0])
        return preference

    def put(self, tenant: str | None, id_: str, preference: Mapping[str, Any]) -> None:
        """Store a preference in the place of what was there."""
        text = json.dumps(dict(preference), allow_nan=False)
        with self._database.write() as c:
            c.execute(
                "INSERT OR REPLACE INTO profiles (tenant, id, preference, updated) VALUES (?, ?, ?, ?)",
                (tenant or "", id_, text, ticks(datetime.now(UTC))),
            )

    def delete(self, tenant: str | None, id_: str) -> None:
        """Erase a profile, from the file's bytes too; raises NotFound.

        SQLite overwrites what it deletes, but not the copies that stay behind when rows move to other pages. So the
        other profiles are written anew, and all the pages of the table overwritten.
        """
        with self._database.write(erases=True) as c:
            if not c.execute("DELETE FROM profiles WHERE tenant = ? AND id = ?", (tenant or "", id_)).rowcount:
                raise NotFound(f"there is no profile {id_!r}")
            c.execute("CREATE TEMP TABLE kept AS SELECT * FROM profiles")
            c.execute("DELETE FROM main.profiles")
            c.execute("INSERT INTO main.profiles SELECT * FROM kept")
            c.execute("DROP TABLE temp.kept")

    def list(self, tenant: str | None) -> tuple[tuple[str, dict[str, Any]], ...]:
        """A tenant's ids and preferences, in the order of ids."""
        with self._database.read() as c:
            rows = c.execute("SELECT id, preference FROM profiles WHERE tenant = ? ORDER BY id", (tenant or "",))
            return tuple((id_, json.loads(preference)) for id_, preference in rows)
