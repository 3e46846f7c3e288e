import logging
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch._dynamo
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from arctic_model import regions
from arctic_workers.training.compiler import MOST_COMPILED, compile_regions


@pytest.fixture(autouse=True)
def compiled_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[set[str]]:
    """The types of devices on which regions are compiled."""
    on: set[str] = set()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(regions, "_compiled_on", on)
    monkeypatch.setattr(regions, "_options", {})
    monkeypatch.delenv("CC", raising=False)
    with torch._dynamo.config.patch(recompile_limit=8):
        yield on


@pytest.mark.parametrize("compiler", ["gcc", "clang", "/opt/cc"])
def test_regions_are_compiled_on_gpus_where_there_is_a_c_compiler(
    compiler: str, compiled_on: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler.startswith("/"):
        monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == compiler else None)
    compile_regions()
    assert compiled_on == {"cuda"}
    assert torch._dynamo.config.recompile_limit == MOST_COMPILED


def test_what_autograds_own_thread_calls_is_compiled_as_often(
    compiled_on: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, compiler = CompileCounter(), torch.compile

    @wraps(compiler)
    def compile_and_count(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        counted: Callable[..., Any] = compiler(function, backend=counter, dynamic=False, **options)
        return counted

    @regions.region
    def doubled(x: Tensor) -> Tensor:
        return 2 * x

    monkeypatch.setattr(torch, "compile", compile_and_count)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    compile_regions()
    compiled_on.add("cpu")
    doubled(torch.ones(20))  # as a forward pass does before
    with ThreadPoolExecutor(1) as other:
        list(other.map(lambda size: doubled(torch.ones(size)), range(2, 14)))
    assert counter.frame_count == 13


@pytest.mark.parametrize("missing", ["C compiler", "Python.h"])
def test_a_rank_without_what_builds_kernels_says_that_it_is_slower(
    missing: str,
    compiled_on: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if missing == "C compiler" else name)
    if missing == "Python.h":
        (tmp_path / "Python.h").unlink()
    with caplog.at_level(logging.WARNING):
        compile_regions()
    assert compiled_on == set()
    assert missing in caplog.text
