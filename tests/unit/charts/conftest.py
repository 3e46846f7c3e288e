"""Rendering the chart with the real helm."""

import functools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus import Prometheus, program, running

from arctic_cluster import binaries

CHART = Path(__file__).parents[3] / "charts" / "arctic"

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]


@pytest.fixture(scope="session")
def helm() -> str:
    built = binaries.folder() / "helm"
    found = str(built) if built.exists() else shutil.which("helm")
    assert found, f"helm is missing: `make setup` builds it into {built.parent}"
    return found


@pytest.fixture(scope="session")
def promtool() -> str:
    return program("promtool")


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that scrapes nothing: it reads expressions."""
    with running(tmp_path_factory.mktemp("prometheus"), {}) as it:
        yield it


@pytest.fixture(scope="session")
def run_helm(helm: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    home = tmp_path_factory.mktemp("helm")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        # No kubeconfig and no configuration of the user's: the chart alone decides what comes out.
        environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "KUBECONFIG": "/dev/null"}
        return subprocess.run([helm, *arguments], capture_output=True, text=True, check=False, env=environment)

    return run


@pytest.fixture(scope="session")
def render(run_helm: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    @functools.cache
    def objects(*arguments: str) -> list[Manifest]:
        rendered = run_helm("template", "arctic", str(CHART), "--namespace", "arctic-system", *arguments)
        assert rendered.returncode == 0, rendered.stderr
        return [document for document in yaml.load_all(rendered.stdout, yaml.CSafeLoader) if document]

    return objects
