"""The process that holds torch for all trainings of an ablation, and forks one for each."""

import json
import os
import queue
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import click

from arctic_api.world import Report, TrainingWorld
from arctic_cluster.files import FOR_PODS
from arctic_workers.control import lifeline
from arctic_workers.control.cores import available_cores

MODULE = "arctic_workers.training.forks"
_END_SECONDS = 10.0


class Forks:
    """Trainings of one rank, side by side.

    Args:
        side_by_side: how many; the machine's cores are shared out among them.
        log: file for what the process says itself.
    """

    def __init__(self, side_by_side: int, log: Path) -> None:
        threads = max(1, available_cores() // side_by_side)
        with log.open("a") as file:
            self._process = subprocess.Popen(
                lifeline.command(MODULE),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": str(threads),
                    "OMP_WAIT_POLICY": "PASSIVE",
                    "GLOO_SOCKET_IFNAME": "lo",
                },
                start_new_session=True,
                umask=FOR_PODS,
            )
        self._log = log
        self._answers: queue.Queue[tuple[str, Report] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                answer = json.loads(line)
                self._answers.put((answer["name"], Report.model_validate(answer["report"])))
        self._answers.put(None)

    def start(self, world: TrainingWorld, log: Path) -> None:
        """Start a training."""
        assert self._process.stdin is not None
        request = {"world": world.model_dump(mode="json", by_alias=True), "log": str(log)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def ended(self, seconds: float) -> tuple[str, Report] | None:
        """Return the name and the report of a training that has ended, None if none has within some seconds."""
        try:
            answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            return None
        if answer is None:
            raise click.ClickException(f"the process that starts trainings has ended: see {self._log}")
        return answer

    def __enter__(self) -> "Forks":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process, and with it all trainings where they are."""
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
