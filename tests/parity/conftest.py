"""Builds the other implementation's environment before the first test, outside any test's time limit."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import interpreter

HERE = Path(__file__).parent
INTERPRETER = pytest.StashKey[str]()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[INTERPRETER] = str(interpreter("llama-cpp"))


@pytest.fixture
def ask(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Asks llama.cpp about a GGUF file; what comes back is in `llama_cpp_runner.py`."""

    def run(file: Path, prompt: list[int], tokens: int, text: str = "") -> dict[str, Any]:
        np.save(tmp_path / "prompt.npy", prompt)
        out = tmp_path / "out.npz"
        runner = [request.config.stash[INTERPRETER], str(HERE / "llama_cpp_runner.py")]
        command = [*runner, str(file), str(tmp_path / "prompt.npy"), str(tokens), str(out), *([text] if text else [])]
        subprocess.run(command, check=True)
        return dict(np.load(out))

    return run
