"""Serves a folder of weights on loopback for as long as it is evaluated, by the native engine."""

import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arctic_api.inference import ArcticInferenceSpec
from arctic_api.uris import uri_of
from arctic_api.world import NODE_RANK_VARIABLE, TRACES_VARIABLE, WORLD_VARIABLE, InferenceGroup, Ports
from arctic_workers.control import lifeline
from arctic_workers.control.ports import LOOPBACK, free_ports

NAME = "evaluated"
"""Name under which the model is asked for."""
_MODULE = "arctic_workers.inference"
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0


class ModelError(Exception):
    """What was named is no model that could be evaluated; the message says what to do."""


class ServingError(Exception):
    """The engine ended before it served the model; the message says what it said last."""


def has_chat_template(folder: Path) -> bool:
    """Return whether a model's folder says how chats are written."""
    from arctic_workers.chat.template import TextError
    from arctic_workers.inference.http.text import Text

    _check(folder)
    try:
        return Text(folder).chat.source is not None
    except TextError as error:
        raise ModelError(f"{folder}: {error}") from error


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
            raise ModelError(str(error)) from error
        yield Path(scratch)


@contextmanager
def served(folder: Path, log: Path) -> Iterator[str]:
    """Yield the address of an API that serves a folder, up to and with /v1; what the server says is added to `log`.

    Weights are bf16, as they are exported.
    """
    _check(folder)
    with tempfile.TemporaryDirectory(prefix="arctic-evaluate-") as scratch, log.open("ab") as said:
        group = _group(folder, Path(scratch))
        told = {
            WORLD_VARIABLE: group.model_dump_json(by_alias=True),
            NODE_RANK_VARIABLE: "0",
            TRACES_VARIABLE: "",  # the evaluation is told of by whoever runs it, not answer by answer
        }
        server = subprocess.Popen(
            lifeline.command(_MODULE),
            env={**os.environ, **told},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C reaches this process alone, which then ends the server in order
        )
        try:
            _wait_until_ready(f"http://{LOOPBACK}:{group.ports.metrics}/readyz", server, log)
            yield f"http://{LOOPBACK}:{group.ports.http}/v1"
        finally:
            _end(server)


def _group(folder: Path, scratch: Path) -> InferenceGroup:
    control, metrics, rendezvous, http = free_ports(4)
    spec = {
        "model": {"uri": uri_of(str(folder.resolve()))},
        "quantization": {"weights": "bf16", "kvCache": "bf16"},
        "service": {"port": http},
    }
    return InferenceGroup(
        namespace="default",
        name=NAME,
        uid=NAME,
        ports=Ports(control=control, metrics=metrics, rendezvous=rendezvous, http=http),
        tls_folder=None,
        termination_message=str(scratch / "report.json"),
        spec=ArcticInferenceSpec.model_validate(spec),
        hosts=[LOOPBACK],
        group=NAME,
        revision=NAME,
        model_folder=str(folder.resolve()),
    )


def _end(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _wait_until_ready(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while server.poll() is None:
        try:
            with direct.open(url, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(_POLL_SECONDS)
    last = log.read_text(errors="replace").splitlines()[-5:]
    raise ServingError("\n".join([f"the model can't be served; {log} ends with:", *last]))


def _check(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} has no config.json: name a model's folder in the Hugging Face layout, a checkpoint of a run, or "
            "an endpoint's address"
        )
