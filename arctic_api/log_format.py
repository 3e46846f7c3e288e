"""How the operator and its workers log: as text, or as one JSON object a line that names what it is about."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

LOG_FORMAT_VARIABLE = "ARCTIC_LOG_FORMAT"
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

LogFormat = Literal["text", "json"]

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default={})  # noqa: B039  never changed in place


@contextmanager
def about(kind: str, namespace: str, name: str) -> Iterator[None]:
    """Have what is logged within, and by tasks that are made within, name an object."""
    token = _about.set({"kind": kind, "namespace": namespace, "name": name})
    try:
        yield
    finally:
        _about.reset(token)


class JsonFormatter(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`; `kind`, `namespace`, `name` of the object; `stack`."""

    def __init__(self, always: Mapping[str, str]) -> None:
        """`always` is said in each line, unless it is `about` another object."""
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **(_about.get() or self._always),
        }
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(level: int | str, form: LogFormat, *, text: str = TEXT, always: Mapping[str, str] | None = None) -> None:
    """Log to the standard error stream, as the process's first word on logging.

    Args:
        level: the least level.
        form: what a line is.
        text: what a line of text is.
        always: fields of each JSON line, such as the object that a worker works for.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(always or {}) if form == "json" else logging.Formatter(text))
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(form == "json")
