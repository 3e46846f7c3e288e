"""Starts confined processes, watches them, and ends them."""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from arctic_workers.evaluation.sandbox import confine
from arctic_workers.evaluation.sandbox.machine import SandboxError, interpreter_files, problems
from arctic_workers.evaluation.sandbox.programs.values import MOST_BYTES
from arctic_workers.evaluation.sandbox.syscalls import filter_program

_PROGRAMS = Path(__file__).with_name("programs")
_PACKAGE = f"{__package__}.programs"
_NEEDS = {
    "candidate": ("values", "modules"),
    "by_asserts": ("values", "asking", "modules"),
    "by_values": ("values", "asking"),
    "query": ("values",),
    "probe": (),
}
_KEPT_OUTPUT = 16 << 10
_MOST_FILES = 200
_TICK_SECONDS = 0.05
_GONE_SECONDS = 0.3
_LAST_WORD_SECONDS = 1.0
"""In which a checker says how far it came with a candidate whose time is over."""


class Ending(StrEnum):
    """How a confined process ended."""

    DONE = "done"
    TIMED_OUT = "timed out"
    FILES = "too many files"
    RESULT = "result too large"
    EXITED = "exited"
    KILLED = "killed"


@dataclass(frozen=True)
class Limits:
    """What a confined process may use."""

    cpu_seconds: int = 10
    """Processor time; at the end of it the kernel kills."""
    wall_seconds: float = 20.0
    memory_bytes: int = 1 << 30
    """Of address space, threads' stacks among it."""
    file_bytes: int = 16 << 20
    """Of each file, and of all in the scratch folder together."""


@dataclass(frozen=True)
class Program:
    """What a confined process runs: a module of `programs`, and what it is told."""

    name: str
    payload: Mapping[str, Any]
    reads: Sequence[Path] = ()
    """Files that it may read, besides the interpreter's own."""


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said."""

    ending: Ending
    result: bytes
    printed: str
    """The last that it wrote to standard output and error."""


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    scratch: Path
    limits: Limits
    result: bytearray = field(default_factory=bytearray)
    printed: bytearray = field(default_factory=bytearray)
    ending: Ending | None = None

    def end(self, ending: Ending) -> None:
        """Kill the process, which nobody has waited for yet: its number is still its own."""
        self.ending = self.ending or ending
        os.kill(self.process.pid, signal.SIGKILL)

    def over_its_files(self) -> bool:
        with os.scandir(self.scratch) as entries:
            sizes = [_size(entry) for entry, _ in zip(entries, range(_MOST_FILES + 1), strict=False)]
        return len(sizes) > _MOST_FILES or sum(sizes) > self.limits.file_bytes

    def ended(self) -> Ended:
        """Take the process out of the kernel's table, and say how it ended: one that goes on is ended here."""
        if self.ending is None and not _gone(self.process):
            self.end(Ending.DONE)
        code, used = _reap(self.process)
        ending = self.ending
        if ending is None and code == -signal.SIGKILL and used >= self.limits.cpu_seconds - 0.5:
            ending = Ending.TIMED_OUT
        if ending is None:
            ending = Ending.KILLED if code < 0 else Ending.DONE if code == 0 and self.result else Ending.EXITED
        return Ended(ending, bytes(self.result), self.printed.decode(errors="replace"))


def _reap(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Return the exit code of a process that is over, or killed, and the processor time that it used."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


class Sandbox:
    """Runs programs confined. Safe to use from several threads at once.

    Raises:
        SandboxError: the machine can't confine a process, or a process that was confined did what it must not.
    """

    def __init__(self) -> None:
        for problem in problems():
            raise SandboxError(f"{problem} Generated code is not run without a sandbox.")
        self._filter = filter_program().hex()
        self._try_it()

    def run(self, program: Program, limits: Limits) -> Ended:
        """Run one program to its end, or to its limits'."""
        with ExitStack() as stack:
            running = self._start(stack, program, limits)
            _watch([running], running, limits.wall_seconds)
            return running.ended()

    def judge(self, candidate: Program, checker: Program, limits: Limits) -> tuple[Ended, Ended]:
        """Run a candidate, and a checker that calls it over two pipes; return how each ended.

        The checker's verdict is its result: the candidate has no way to it. In both payloads stand the ends of the
        pipes that the process has, as `calls` and `answers`.
        """
        with ExitStack() as stack:
            asked, asks = _pipe(stack)
            answered, answers = _pipe(stack)
            judged = self._start(stack, candidate, limits, {"calls": asked, "answers": answers})
            judge = self._start(stack, checker, limits, {"calls": asks, "answers": answered})
            for end in (asked, asks, answered, answers):
                end.close()
            _watch([judge, judged], judge, limits.wall_seconds)
            verdict = judge.ended()
            return judged.ended(), verdict

    def _start(
        self, stack: ExitStack, program: Program, limits: Limits, channels: Mapping[str, IO[bytes]] = {}
    ) -> _Running:
        numbers = {name: channel.fileno() for name, channel in channels.items()}
        scratch = Path(stack.enter_context(_scratch()))
        told = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  it is a context manager
        told.write(json.dumps(self._document(program, limits, scratch, numbers)).encode())
        told.seek(0)
        process = subprocess.Popen(
            # Without the environment's packages, and with nothing of the user's.
            [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", confine.__file__],
            stdin=told,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(numbers.values()),
            cwd="/",
            env={"HOME": str(scratch), "TMPDIR": str(scratch), "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        running = _Running(process, scratch, limits)
        stack.callback(_end_whatever_happened, running)
        return running

    def _document(self, program: Program, limits: Limits, scratch: Path, channels: Mapping[str, int]) -> dict[str, Any]:
        names = (*_NEEDS[program.name], program.name)
        rights = [(str(path), confine.READ_FILE) for path in program.reads]
        in_scratch = (
            confine.READ_FILE | confine.READ_FOLDER | confine.WRITE_FILE | confine.REMOVE_FILE
            | confine.MAKE_FILE | confine.TRUNCATE
        )  # fmt: skip
        return {
            "parent": os.getpid(),
            "scratch": str(scratch),
            "files": [*interpreter_files(), *rights, (str(scratch), in_scratch)],
            "limits": {
                "cpu_seconds": limits.cpu_seconds,
                "memory_bytes": limits.memory_bytes,
                "file_bytes": limits.file_bytes,
            },
            "filter": self._filter,
            "sources": [(f"{_PACKAGE}.{name}", (_PROGRAMS / f"{name}.py").read_text()) for name in names],
            "payload": {**program.payload, **channels},
        }

    def _try_it(self) -> None:
        with tempfile.NamedTemporaryFile(prefix="arctic-sandbox-") as file:
            payload = {"readable": file.name, "writable": f"{file.name}-new", "program": sys.executable}
            ended = self.run(Program("probe", payload), Limits())
            Path(f"{file.name}-new").unlink(missing_ok=True)
        if ended.ending != Ending.DONE:
            raise SandboxError(f"No process can be confined here: {ended.printed.strip()[-500:] or ended.ending}")
        if went_through := json.loads(ended.result):
            raise SandboxError(
                f"A confined process could {', '.join(went_through)} on this machine. Generated code is not run here."
            )


@contextmanager
def _scratch() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="arctic-scratch-") as folder:
        yield folder


def _pipe(stack: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    reads, writes = os.pipe()
    return (
        stack.enter_context(os.fdopen(reads, "rb", buffering=0)),
        stack.enter_context(os.fdopen(writes, "wb", buffering=0)),
    )


def _watch(all_of_them: Sequence[_Running], main: _Running, seconds: float) -> None:
    """Take what processes say until `main` has ended; end all that are over a limit, `main` last."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for running in all_of_them:
            selector.register(_pipe_of(running.process.stdout), selectors.EVENT_READ, (running, True))
            selector.register(_pipe_of(running.process.stderr), selectors.EVENT_READ, (running, False))
        looked = time.monotonic()
        while any(key.data[0] is main for key in selector.get_map().values()):
            for key, _ in selector.select(_TICK_SECONDS):
                running, is_result = key.data
                if not _take(running, key.fd, is_result):
                    selector.unregister(key.fileobj)
            now = time.monotonic()
            if now - looked >= _TICK_SECONDS:
                looked = now
                _end_all([running for running in all_of_them if running.over_its_files()], Ending.FILES)
            if now >= deadline:
                late = [running for running in all_of_them if running is not main and running.ending is None]
                _end_all(late or [main], Ending.TIMED_OUT)
                if not late:
                    return
                deadline = now + _LAST_WORD_SECONDS


def _end_all(those: Sequence[_Running], ending: Ending) -> None:
    for running in those:
        running.end(ending)


def _pipe_of(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "all streams are pipes"
    return stream


def _take(running: _Running, descriptor: int, is_result: bool) -> bool:
    """Read what there is, and keep what is to be kept; return whether there may be more."""
    part = os.read(descriptor, 1 << 16)
    if is_result:
        running.result += part
        if len(running.result) > MOST_BYTES:
            running.end(Ending.RESULT)
    else:
        running.printed += part
        del running.printed[:-_KEPT_OUTPUT]
    return bool(part)


def _size(entry: os.DirEntry[str]) -> int:
    """Bytes of a file, which the program that is confined may have removed meanwhile."""
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _gone(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process ends by itself within a moment; it is left for `_reap`."""
    deadline = time.monotonic() + _GONE_SECONDS
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return True
        time.sleep(0.002)
    return False


def _end_whatever_happened(running: _Running) -> None:
    if running.process.returncode is None:
        running.end(Ending.KILLED)
        _reap(running.process)
    for stream in (running.process.stdout, running.process.stderr):
        _pipe_of(stream).close()
