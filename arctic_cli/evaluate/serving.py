"""Serves a folder of weights on loopback for as long as it is evaluated, by the native engine."""

import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from arctic_cli.local import INFERENCE_MODULE, Processes, inference_groups
from arctic_cli.ports import LOOPBACK, free_ports
from arctic_workers.control.signals import StopFlag

NAME = "evaluated"
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0


def has_chat_template(folder: Path) -> bool:
    """Return whether a model's folder says how chats are written."""
    from arctic_workers.chat.template import TextError
    from arctic_workers.inference.http.text import Text

    _check(folder)
    try:
        return Text(folder).chat.source is not None
    except TextError as error:
        raise click.ClickException(f"{folder}: {error}") from error


@contextmanager
def weights_of(folder: Path) -> Iterator[Path]:
    """Yield a model's folder: the one that is named, or what a run's checkpoint holds, for as long as it is needed."""
    from arctic_workers.training.checkpoint.model import is_checkpoint, write_model
    from arctic_workers.training.errors import Refused

    if not is_checkpoint(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="arctic-weights-") as scratch:
        try:
            write_model(folder, Path(scratch))
        except (ValueError, Refused) as error:
            raise click.ClickException(str(error)) from error
        yield Path(scratch)


@contextmanager
def served(folder: Path, log: Path) -> Iterator[str]:
    """Yield the address of an API that serves a folder, up to and with /v1; what the server says is added to `log`.

    Weights are bf16, as they are exported.
    """
    _check(folder)
    [port] = free_ports(1)
    spec: dict[str, Any] = {
        "model": {"uri": f"file://{folder.resolve()}"},
        "engine": {"name": "native"},
        "quantization": {"weights": "bf16", "kvCache": "bf16"},
        "service": {"port": port},
    }
    stop = StopFlag()
    with tempfile.TemporaryDirectory(prefix="arctic-evaluate-") as scratch:
        groups = inference_groups({"metadata": {"name": NAME}, "spec": spec}, Path(scratch), Path(scratch))
        processes = Processes(INFERENCE_MODULE, groups, None, partial(_note, log))
        ended = threading.Event()

        def wait() -> None:
            processes.wait(_GRACE_SECONDS, stop)
            ended.set()

        watch = threading.Thread(target=wait)
        watch.start()
        try:
            _wait_until_ready(f"http://{LOOPBACK}:{groups[0].ports.metrics}/readyz", ended, log)
            yield f"http://{LOOPBACK}:{port}/v1"
        finally:
            stop.request()
            watch.join()


def _note(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(f"{line}\n")


def _wait_until_ready(url: str, ended: threading.Event, log: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while not ended.is_set():
        try:
            with direct.open(url, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(_POLL_SECONDS)
    last = log.read_text().splitlines()[-5:] if log.exists() else []
    raise click.ClickException("\n".join([f"the model can't be served; {log} ends with:", *last]))


def _check(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise click.UsageError(
            f"{folder} has no config.json: name a model's folder in the Hugging Face layout, a checkpoint of a run, or "
            "an endpoint's address"
        )
