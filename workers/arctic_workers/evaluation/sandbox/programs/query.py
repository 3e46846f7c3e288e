"""Runs one query on an SQLite database that it can only read, and returns the rows."""

import json
import sqlite3
from collections.abc import Mapping
from typing import IO, Any

from arctic_workers.evaluation.sandbox.programs.values import encode

MOST_ROWS = 200_000
_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def _authorize(action: int, _first: Any, second: Any, _database: Any, _trigger: Any) -> int:
    loads = action == sqlite3.SQLITE_FUNCTION and str(second).lower() in ("load_extension", "fts3_tokenizer")
    return sqlite3.SQLITE_OK if action in _READS and not loads else sqlite3.SQLITE_DENY


def run(payload: Mapping[str, Any], result: IO[bytes]) -> None:
    """Say the rows of `query` on the file of the URI `database`, or the error."""
    # Immutable: nobody writes it meanwhile, and no journal is looked for beside it.
    connection = sqlite3.connect(f"{payload['database']}?mode=ro&immutable=1", uri=True)
    connection.text_factory = lambda text: text.decode(errors="ignore")
    connection.execute("PRAGMA temp_store = memory")
    connection.set_authorizer(_authorize)
    try:
        cursor = connection.execute(payload["query"])
        rows = cursor.fetchmany(MOST_ROWS + 1)
        if cursor.description is None:  # SQLite runs nothing, and a comment, without a complaint
            said = {"error": "not a query"}
        else:
            said = {"error": f"more than {MOST_ROWS} rows"} if len(rows) > MOST_ROWS else {"rows": encode(rows)}
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    except MemoryError:
        said = {"error": "ran out of memory"}
    result.write(json.dumps(said).encode())
