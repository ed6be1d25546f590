"""The tables of a store's file, and whether a file is one."""

import sqlite3

from trimtab.decoders.library.errors import Unusable

VERSION = 1
"""of the tables; a file of a newer one is refused"""
APPLICATION = 0x7472696D
"""marks the file as ours: "trim" in ASCII"""
TOKENIZE = "unicode61 remove_diacritics 2 categories 'L* M* N* Co'"
"""marks belong to words: many scripts write vowels as such"""

# Keys are never given twice, so that a copy in memory cannot take a new norm for one that was deleted. `removed` keeps
# the last version of deleted ids, as digests; `vectors` keeps the key and the model of a vector that was dropped, for
# such copies.
TABLES = f"""
CREATE TABLE state (changes INTEGER NOT NULL);
INSERT INTO state VALUES (0);
CREATE TABLE norms (
    key INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, text TEXT NOT NULL, tags TEXT NOT NULL,
    locale TEXT COLLATE NOCASE, tenant TEXT, topic TEXT, valid_from INTEGER, valid_until INTEGER,
    version INTEGER NOT NULL, updated INTEGER NOT NULL
);
CREATE INDEX norms_scope ON norms (tenant, topic, locale, valid_from, valid_until);
CREATE TABLE tags (tag TEXT NOT NULL, key INTEGER NOT NULL, PRIMARY KEY (tag, key)) WITHOUT ROWID;
CREATE INDEX tags_key ON tags (key);
CREATE TABLE removed (digest BLOB PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = "{TOKENIZE}");
CREATE VIRTUAL TABLE terms USING fts5vocab (words, 'row');
CREATE TABLE vectors (
    key INTEGER NOT NULL, model TEXT NOT NULL, vector BLOB, changed INTEGER NOT NULL, PRIMARY KEY (key, model)
);
CREATE INDEX vectors_changed ON vectors (model, changed);
CREATE TABLE profiles (
    tenant TEXT NOT NULL, id TEXT NOT NULL, preference TEXT NOT NULL, updated INTEGER NOT NULL, PRIMARY KEY (tenant, id)
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""

# What splits queries into the very terms of the index: a table of each reader's own.
QUERIES = f"""
CREATE VIRTUAL TABLE temp.asked USING fts5 (text, content = '', tokenize = "{TOKENIZE}");
CREATE VIRTUAL TABLE temp.asked_terms USING fts5vocab (temp, asked, 'row');
"""


def prepare(connection: sqlite3.Connection, where: str) -> None:
    """Make the tables of a new file, and check those of one that is there; raises Unusable."""
    if not connection.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").fetchone():
        raise Unusable(
            f"the SQLite {sqlite3.sqlite_version} of this Python has no full-text search (FTS5), which norms need: "
            "take a Python whose sqlite3 has it, as those of python.org, conda and the distributions do"
        )
    if _is_ours(connection, where):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not _is_ours(connection, where):
            for statement in TABLES.split(";\n"):
                connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _is_ours(connection: sqlite3.Connection, where: str) -> bool:
    """Whether the tables are there; False for an empty file."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables and not application and not version:
        return False
    if application != APPLICATION:
        raise Unusable(f"{where} is a database of something else: name another file, which will be made")
    if version > VERSION:
        raise Unusable(
            f"{where} was written by a newer trimtab (tables {version}, this one knows {VERSION}): update this one, or "
            "name another file"
        )
    return True
