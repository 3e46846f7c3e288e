"""The line between pod 0's supervisor and a later pod's, over SSH: lines of one word, and its end, which is a loss.

Pod 0 opens one to each later pod and says `ready`, `waiting` and, as its last word, `done`. The later pod says `here`
at once, and `stop` when it is told to stop. Both ends notice a silent one by OpenSSH's own checks.
"""

import logging
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal

log = logging.getLogger(__name__)

FromFirst = Literal["ready", "waiting", "done"]
FromLater = Literal["here", "stop"]
_LINE = 80


class Link:
    """Pod 0's end of the line to one later pod."""

    def __init__(self, host: str, command: Sequence[str]) -> None:
        """Begin to connect by running a command."""
        self.host = host
        self.here = threading.Event()
        """Set once the later pod's supervisor answers."""
        self.stop = threading.Event()
        """Set when the later pod was told to stop."""
        self.lost = threading.Event()
        """Set when the line is no more."""
        self.complaint = ""
        """What the command said last on its standard error."""
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._threads = [threading.Thread(target=follow, daemon=True) for follow in (self._follow, self._complain)]
        for thread in self._threads:
            thread.start()

    def tell(self, word: FromFirst) -> None:
        """Say a word; a line that is no more is `lost`, and says so by itself."""
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()

    def close(self, patience: float = 0.0) -> None:
        """Wait for the other end to hang up, as it does after `done`, and hang up."""
        self.lost.wait(patience)
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            with suppress(OSError):  # what could not be said to one that is gone
                stream.close()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        heard = {"here": self.here, "stop": self.stop}
        for line in self._process.stdout:
            if event := heard.get(line.strip()):
                event.set()
        self.lost.set()

    def _complain(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.complaint = line.strip()


class LinkEnd:
    """The later pod's end: listens for pod 0, once. `heard` is called with each word, on a thread."""

    def __init__(self, path: Path, heard: Callable[[str], None]) -> None:
        """Listen."""
        self._heard = heard
        self.met = threading.Event()
        """Set once pod 0 is on the line."""
        self.lost = threading.Event()
        """Set when the line is no more."""
        self._file: IO[str] | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen()
        threading.Thread(target=self._follow, name="link", daemon=True).start()

    def tell(self, word: FromLater) -> None:
        """Say a word, once met; a line that is no more is `lost`, and says so by itself."""
        if self._file is not None:
            with suppress(OSError, ValueError):
                self._file.write(f"{word}\n")
                self._file.flush()

    def _follow(self) -> None:
        connection, _ = self._listener.accept()
        # One pod 0 a life of this pod: another one is another group.
        self._listener.close()
        with suppress(OSError), connection, connection.makefile("rw") as file:
            self._file = file
            self.tell("here")
            self.met.set()
            while line := file.readline(_LINE):
                self._heard(line.strip())
        self.lost.set()
