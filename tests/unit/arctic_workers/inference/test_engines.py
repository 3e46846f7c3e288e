"""What holds of every engine that a manifest may name: a room of its own, and a launch that is pure and looked at."""

import tomllib
from pathlib import Path

import pytest

from arctic_api.engine_options import ENGINES, EngineName
from arctic_workers.inference import engines

ROOT = Path(__file__).parents[4]
ROOMS = Path(engines.__file__).parent
GOLDEN: dict[EngineName, str] = {
    "native": "arctic_workers/inference/engines/native/test_plan.py",
    "vllm": "arctic_workers/inference/engines/vllm/test_arguments.py",
    "tensorrt-llm": "arctic_workers/inference/engines/tensorrt_llm/test_arguments.py",
    "nim": "arctic_operator/manifests/test_nim.py",
}
"""Where it is written down, under tests/unit, what an engine is started with for a manifest."""


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_has_a_room(engine: EngineName) -> None:
    room = ROOMS / engine.replace("-", "_") / "room.py"
    assert room.is_file(), f"{engine} can be asked for and nothing runs it"
    assert "def run(" in room.read_text()


def test_every_room_is_an_engines() -> None:
    rooms = {path.parent.name for path in ROOMS.glob("*/room.py")}
    assert rooms <= {engine.replace("-", "_") for engine in ENGINES}


def test_no_room_may_import_anothers() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    independent = [contract["modules"] for contract in contracts if contract["type"] == "independence"]
    assert [f"{engines.__name__}.*"] in independent


def test_every_launch_is_written_down() -> None:
    assert set(GOLDEN) == set(ENGINES)
    missing = [path for path in GOLDEN.values() if not (ROOT / "tests/unit" / path).is_file()]
    assert missing == []
