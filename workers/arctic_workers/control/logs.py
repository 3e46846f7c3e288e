"""How a worker logs: as the operator's setting says, each line of JSON with the object that the worker works for."""

import json
import logging
from collections.abc import Mapping

from arctic_api.log_format import LOG_FORMAT_VARIABLE, TEXT, configure
from arctic_api.world import WORLD_VARIABLE

WITHOUT_LOGGER = "%(asctime)s %(levelname)s %(message)s"
"""What a line of text is where only few things log."""


def configure_logs(environment: Mapping[str, str], text: str = TEXT) -> None:
    """Begin to log. A world that can't be read is for others to complain of."""
    as_json = environment.get(LOG_FORMAT_VARIABLE) == "json"
    configure(logging.INFO, "json" if as_json else "text", text=text, always=_object(environment) if as_json else None)


def _object(environment: Mapping[str, str]) -> dict[str, str]:
    try:
        world = json.loads(environment.get(WORLD_VARIABLE, ""))
        return {field: str(world[field]) for field in ("kind", "namespace", "name")}
    except (ValueError, TypeError, KeyError):
        return {}
