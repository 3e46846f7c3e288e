"""vLLM, asked about a checkpoint in processes of its own: those of the environment that the tests run in."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from groups_of_vllm import write_model_for_vllm

RUNNER = Path(__file__).with_name("vllm_runner.py")
GREEDY_TOKENS = 24
LEFT_OPEN = "Unclosed context"


def pytest_configure(config: pytest.Config) -> None:
    """vLLM leaves that to the end of its process."""
    config.addinivalue_line("filterwarnings", f"ignore:{LEFT_OPEN}:ResourceWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure() -> None:
    """The last collection of garbage comes after the filters of the tests are gone."""
    warnings.filterwarnings("ignore", LEFT_OPEN, ResourceWarning)


def pytest_collection_modifyitems() -> None:
    if find_spec("vllm") is None:
        raise pytest.UsageError("tests/engines/vllm runs in an environment with vLLM: `make test-engines`")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Arctic with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_model_for_vllm(folder)
    return folder


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Asks what follows the prompt in a checkpoint, and how likely all tokens are on the way; see `vllm_runner.py`."""

    def run(checkpoint: Path, prompt: list[int], **arguments: Any) -> dict[str, Any]:
        np.save(tmp_path / "prompt.npy", prompt)
        out = tmp_path / "out.npz"
        files = [str(checkpoint), str(tmp_path / "prompt.npy"), str(GREEDY_TOKENS), str(out)]
        subprocess.run([sys.executable, str(RUNNER), *files, json.dumps(arguments)], check=True)
        return dict(np.load(out))

    return run
