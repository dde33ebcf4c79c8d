"""The workspace's SQLite catalogue: what was asked, what was done, what was decided.

Everything in it can be rebuilt from the block files and each run's `run.json`, except decisions, which are also written beside
their exports. Rollback journal, not WAL: SQLite 3.7.0 to 3.51.2, which Python often links, can corrupt a WAL file when two of its
checkpoints race.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tracin_core.errors import DiskFullError, MachineError, WorkspaceError

MIGRATIONS = (
    """
    CREATE TABLE job (
        id TEXT PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, title TEXT NOT NULL, request TEXT NOT NULL,
        request_digest TEXT NOT NULL, run_id TEXT, step TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0,
        total INTEGER NOT NULL DEFAULT 0, fraction REAL NOT NULL DEFAULT 0, eta_seconds REAL, error TEXT, result TEXT,
        cancel INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, stalls INTEGER NOT NULL DEFAULT 0,
        owner TEXT, beat REAL, created REAL NOT NULL, started REAL, finished REAL, position INTEGER NOT NULL
    );
    CREATE INDEX job_by_state ON job (state, position);
    CREATE TABLE run (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, recipe TEXT NOT NULL, created REAL NOT NULL, state TEXT NOT NULL
    );
    CREATE TABLE block (
        name TEXT PRIMARY KEY, shape TEXT NOT NULL, crc INTEGER NOT NULL, seconds REAL NOT NULL, created REAL NOT NULL
    );
    CREATE TABLE exclusion (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL, created REAL NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL,
        rule TEXT NOT NULL, file TEXT NOT NULL, entries INTEGER NOT NULL
    );
    """,
)


class Catalogue:
    """One SQLite file; a connection per transaction, so that any number of processes and threads can use it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._migrate()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything inside happens, or nothing does; other writers wait up to 30 s."""
        try:
            connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        except sqlite3.DatabaseError as failure:
            raise self._unusable(failure) from failure
        with closing(connection):
            connection.row_factory = sqlite3.Row
            try:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException as failure:
                with suppress(sqlite3.Error):  # where SQLite could not roll back, the next reader does
                    connection.rollback()
                if isinstance(failure, sqlite3.DatabaseError):
                    raise self._unusable(failure) from failure
                raise

    def read(self, query: str, values: tuple[object, ...] = ()) -> list[sqlite3.Row]:
        """The rows of a query, without taking the write lock."""
        try:
            with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as connection:
                connection.row_factory = sqlite3.Row
                return connection.execute(query, values).fetchall()
        except sqlite3.DatabaseError as failure:
            raise self._unusable(failure) from failure

    def _unusable(self, failure: sqlite3.Error) -> MachineError:
        if getattr(failure, "sqlite_errorname", "") == "SQLITE_FULL":
            return DiskFullError(f"No room on the disk for the catalogue '{self.path.name}'; free some space: finished work is kept.")
        return WorkspaceError(
            f"The catalogue '{self.path.name}' cannot be used ({failure}); check that the workspace is on a local disk that you may "
            f"write to, and move a damaged file away: runs, kernels and exports stay."
        )

    def _migrate(self) -> None:
        with self.transaction() as connection:
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if version > len(MIGRATIONS):
                raise WorkspaceError(
                    f"The workspace was written by a newer version (catalogue {version}, this one knows {len(MIGRATIONS)}); "
                    f"update TracIn Studio."
                )
            for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
                for statement in statements.split(";"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")
