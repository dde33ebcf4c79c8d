"""The workspace's SQLite catalogue: what was asked, what was done, what was decided.

Everything in it can be rebuilt from the block files and each run's `run.json`, except decisions, which are also written beside
their exports. Rollback journal, not WAL: SQLite 3.7.0 to 3.51.2, which Python often links, can corrupt a WAL file when two of its
checkpoints race.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from tracin_core.errors import DiskFullError, MachineError, RecipeError, WorkspaceError
from tracin_core.recipe import Recipe

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
    """
    ALTER TABLE job ADD COLUMN who TEXT NOT NULL DEFAULT '';
    """,
)


class Catalogue:
    """One SQLite file; a connection per transaction, so that any number of processes and threads can use it.

    Args:
        migrate: False where it is only read: it is not made, brought up to date or waited for.
    """

    def __init__(self, path: Path, *, migrate: bool = True) -> None:
        self.path = path
        if migrate:
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
            return DiskFullError(
                f"No room on the disk for the catalogue '{self.path.name}'; free some space: finished work is kept."
            )
        if getattr(failure, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
            return WorkspaceError(
                f"Another process holds the catalogue '{self.path.name}' ({failure}); try again: a worker that stands still is ended by "
                f"the dashboard, or whoever waits for a job, after a minute."
            )
        return WorkspaceError(
            f"The catalogue '{self.path.name}' cannot be used ({failure}); check that the workspace is on a local disk that you may "
            f"write to. To move a damaged file away and restore it from runs, kernels and exports, which stay as they are: "
            f"python -m tracin_core rebuild-catalogue --workspace {self.path.parent}"
        )

    def _migrate(self) -> None:
        if self.path.is_file() and self.read("PRAGMA user_version")[0][0] == len(MIGRATIONS):
            return  # nobody has to wait for the write lock
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


def catalogue_damage(path: Path) -> str:
    """Why this catalogue cannot be relied on, as the rest of a sentence about it; empty if it is whole.

    Whole means: SQLite finds its pages in order, its tables are as some version made them, and each row can be read as what it should be.

    Raises:
        WorkspaceError: a newer version wrote it, so that this one cannot judge.
    """
    if not path.is_file():
        return "is not there"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
            if found != ["ok"]:
                return f"is damaged ({found[0].splitlines()[-1]})"
            return _odd_tables(connection) or _odd_rows(connection)
    except (sqlite3.Error, UnicodeDecodeError) as failure:
        return f"cannot be read ({failure})"


def _odd_tables(connection: sqlite3.Connection) -> str:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    tables = _tables(connection)
    if not tables:
        return "is empty"
    if version > len(MIGRATIONS) and tables != _tables_of(len(MIGRATIONS)):
        raise WorkspaceError(
            f"The workspace was written by a newer version (catalogue {version}, this one knows {len(MIGRATIONS)}); update TracIn Studio."
        )
    if version < 0 or version > len(MIGRATIONS) or tables != _tables_of(version):
        return f"is damaged (its tables are not those of version {version})"
    return ""


def _tables(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    query = "SELECT type, name, tbl_name, COALESCE(sql, '') FROM sqlite_master ORDER BY name"
    return [tuple(row) for row in connection.execute(query)]


def _tables_of(version: int) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for statements in MIGRATIONS[:version]:
            connection.executescript(statements)
        return _tables(connection)


def _odd_rows(connection: sqlite3.Connection) -> str:
    """Which row is not what a row of its table is; empty if all are."""
    known = {name for kind, name, *_ in _tables(connection) if kind == "table"}
    for table, require in ROWS.items():
        for row in connection.execute(f"SELECT * FROM {table}") if table in known else ():
            try:
                require(row)
            except (ValueError, TypeError, KeyError, RecipeError) as failure:
                return f"is damaged (a row of its table '{table}': {failure})"
    return ""


def _require_job(row: sqlite3.Row) -> None:
    if not isinstance(json.loads(row["request"]), dict):
        raise TypeError(f"the request of job {row['id']!r}")
    json.loads(row["result"] or "null")
    float(row["created"])


def _require_run(row: sqlite3.Row) -> None:
    Recipe.from_dict(json.loads(row["recipe"]))
    float(row["created"])


def _require_block(row: sqlite3.Row) -> None:
    if not isinstance(json.loads(row["shape"]), list):
        raise TypeError(f"the shape of block {row['name']!r}")
    for number in (row["crc"], row["created"], row["seconds"]):
        float(number)


def _require_exclusion(row: sqlite3.Row) -> None:
    for number in (row["entries"], row["created"]):
        float(number)


ROWS: Final[dict[str, Callable[[sqlite3.Row], None]]] = {
    "job": _require_job,
    "run": _require_run,
    "block": _require_block,
    "exclusion": _require_exclusion,
}
