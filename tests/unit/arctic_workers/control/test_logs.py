"""How a worker's process logs, by its environment."""

import json
import os
import subprocess
import sys

import pytest

from arctic_api.log_format import LOG_FORMAT_VARIABLE
from arctic_api.world import WORLD_VARIABLE, InferenceGroup

pytestmark = pytest.mark.processes

CODE = """
import logging, os, warnings
from arctic_workers.control.logs import configure_logs
configure_logs(os.environ)
logging.getLogger("arctic").info("hello")
warnings.warn("careful")
"""


def lines(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_each_line_of_json_names_the_object_of_the_world(group: InferenceGroup) -> None:
    world = group.model_dump_json(by_alias=True)
    said, warned = map(json.loads, lines(**{LOG_FORMAT_VARIABLE: "json", WORLD_VARIABLE: world}))
    assert said["message"] == "hello"
    assert "careful" in warned["message"]
    assert all(
        (each["kind"], each["namespace"], each["name"]) == ("ArcticInference", "team", "chat")
        for each in (said, warned)
    )


@pytest.mark.parametrize("world", ["", "[]", '{"kind": 1'])
def test_a_world_that_is_none_costs_no_line(world: str) -> None:
    assert json.loads(lines(**{LOG_FORMAT_VARIABLE: "json", WORLD_VARIABLE: world})[0])["message"] == "hello"


def test_text_is_the_default() -> None:
    assert lines()[0].endswith("INFO arctic: hello")
