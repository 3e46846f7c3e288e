"""The wire between a pod's supervisor and the rank that speaks for it: JSON lines over a unix socket, nothing else.

The rank sends `{"begun": true}` once it looks at commands, `{"state": {...}}`, `{"id": I, "answer": {...}}` and
`{"id": I, "refusal": "..."}`; the supervisor sends `{"id": I, "command": "pause", "arguments": {...}}`. Either side may
come late, go, and come back: on each connection the rank says again that it has begun and sends its newest state, and
the supervisor every command that has no answer yet, which the rank tells from new ones by their ids. Whoever may open
the socket is obeyed: its folder is private and its mode 0600.
"""

import asyncio
import json
import logging
import os
import queue
import shutil
import tempfile
import uuid
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from arctic_api.world import CheckpointReport
from arctic_rpc.control_pb2 import WorkerState
from arctic_workers.control.commands import Commands, NotNow
from arctic_workers.control.loop import LoopThread

log = logging.getLogger(__name__)

LINK_VARIABLE = "ARCTIC_LINK"
RETRY_SECONDS = 0.2
LINE_LIMIT = 1 << 20

Message = dict[str, Any]


def _encode(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


_BEGUN = _encode({"begun": True})


class LinkServer:
    """The supervisor's end, from its making to `close` or for a with-statement."""

    def __init__(self, on_state: Callable[[WorkerState], None]) -> None:
        """Listen in a new private folder; `on_state` is called on a background thread and must not block."""
        self._on_state = on_state
        self._pending: dict[str, tuple[bytes, Future[Message]]] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self.begun = False
        """Whether the rank has said that it looks at commands."""
        self._folder = Path(tempfile.mkdtemp(prefix="arctic-link-"))  # mode 0700
        self.path = str(self._folder / "link")
        self._thread = LoopThread("link")
        self._thread.call(self._listen())

    def __enter__(self) -> "LinkServer":
        """Return the server, which listens already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """What the rank's process needs in its environment."""
        return {LINK_VARIABLE: self.path}

    @property
    def connected(self) -> bool:
        """Whether a rank is on the line."""
        return bool(self._writers)

    def submit(self, name: str, **arguments: Any) -> Future[Message]:
        """Send a command, now and whenever a rank connects, until it is answered or its future cancelled.

        The future gives the answer, or `NotNow` with the rank's reason.
        """
        number = uuid.uuid4().hex
        line = _encode({"id": number, "command": name, "arguments": arguments})
        future: Future[Message] = Future()
        self._thread.loop.call_soon_threadsafe(self._send, number, line, future)
        return future

    def send_command(self, name: str, timeout: float, **arguments: Any) -> Message:
        """Send a command and return its answer; `NotNow` as the rank said, TimeoutError after `timeout` seconds."""
        future = self.submit(name, **arguments)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise TimeoutError(f"The ranks did not answer {name!r} within {timeout:.0f} s.") from None
        except CancelledError:
            raise NotNow("The pod is ending.") from None

    def close(self) -> None:
        """Hang up, cancel what has no answer, and remove the folder."""
        self._thread.call(self._hang_up())
        self._thread.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path, limit=LINE_LIMIT)
        os.chmod(self.path, 0o600)

    async def _hang_up(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        for _, future in self._pending.values():
            future.cancel()

    def _send(self, number: str, line: bytes, future: Future[Message]) -> None:
        self._pending = {number: entry for number, entry in self._pending.items() if not entry[1].done()}
        self._pending[number] = (line, future)
        for writer in self._writers:
            writer.write(line)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            for line, future in self._pending.values():
                if not future.done():
                    writer.write(line)
            async for line in reader:
                self._take(json.loads(line))
        except OSError:
            log.debug("The rank hung up", exc_info=True)
        except Exception:
            log.exception("The line to the rank broke")
        finally:
            self._writers.discard(writer)
            writer.close()

    def _take(self, message: Message) -> None:
        if "begun" in message:
            self.begun = True
            return
        if "state" in message:
            self._on_state(json_format.ParseDict(message["state"], WorkerState()))
            return
        _, future = self._pending.pop(message["id"], (b"", None))
        if future is None:
            return  # answered before, on a line that broke
        with suppress(InvalidStateError):  # nobody waits any more
            if "refusal" in message:
                future.set_exception(NotNow(message["refusal"]))
            else:
                future.set_result(message["answer"])


class LinkedCommands(Commands):
    """Commands of a training pod: forwarded to the rank, but for `stop`, which is the supervisor's own."""

    def __init__(self, link: LinkServer, stop: Callable[[], None]) -> None:
        """Forward over `link`; `stop` begins what SIGTERM begins."""
        self._link = link
        self._stop = stop

    def _ask(self, name: str, timeout: float, **arguments: Any) -> Message:
        if not self._link.connected:
            raise NotNow("The ranks are not on the line: they are still starting, or have ended.")
        return self._link.send_command(name, timeout, **arguments)

    def checkpoint(self, timeout: float) -> CheckpointReport:
        """Ask the rank for a checkpoint."""
        return CheckpointReport.model_validate(self._ask("checkpoint", timeout))

    def pause(self, timeout: float) -> None:
        """Ask the rank to hold."""
        self._ask("pause", timeout)

    def resume(self, timeout: float) -> None:
        """Ask the rank to go on."""
        self._ask("resume", timeout)

    def stop_after(self, stage: str, timeout: float) -> None:
        """Tell the rank which stage is the last one."""
        self._ask("stop_after", timeout, stage=stage)

    def stop(self, timeout: float) -> None:  # noqa: ARG002 - answers at once
        """Begin what SIGTERM begins."""
        self._stop()

    def profile(self, steps: int, timeout: float) -> str:
        """Ask the rank for a trace."""
        return str(self._ask("profile", timeout, steps=steps)["uri"])


class Command:
    """Something that the supervisor asks of the rank; either `answer` or `refuse` is to be called, from any thread."""

    def __init__(self, name: str, arguments: Message, reply: Callable[[Message], None]) -> None:
        """Hold what was asked and the way back."""
        self.name = name
        self.arguments = arguments
        self._reply = reply

    def answer(self, **result: Any) -> None:
        """Say that it is done."""
        self._reply({"answer": result})

    def refuse(self, reason: str) -> None:
        """Say, with a sentence, why it is not done."""
        self._reply({"refusal": reason})


class LinkClient:
    """The rank's end. Only `close` waits: a background thread connects, sends and receives."""

    def __init__(self, path: str) -> None:
        """Begin to connect, and do it again whenever the line breaks."""
        self._path = path
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._replies: dict[str, bytes | None] = {}  # of every command taken; None until it is answered
        self._state: bytes | None = None
        self._begun = False
        self._outbox: list[bytes] = []
        self._news = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self._thread = LoopThread("link")
        self._running = asyncio.run_coroutine_threadsafe(self._run(), self._thread.loop)

    @classmethod
    def from_environment(cls) -> "LinkClient | None":
        """Return the client of the link that the environment names, None where there is no supervisor."""
        path = os.environ.get(LINK_VARIABLE)
        return cls(path) if path else None

    def begin(self) -> None:
        """Say that commands are looked at from now on."""
        self._soon(self._take_begin)

    def publish(self, state: WorkerState) -> None:
        """Send a state; one that is not sent yet is replaced by a newer one."""
        self._soon(self._take_state, _encode({"state": json_format.MessageToDict(state)}))

    def poll(self) -> list[Command]:
        """Return the commands that came since the last poll."""
        commands = []
        with suppress(queue.Empty):
            while True:
                commands.append(self._commands.get_nowait())
        return commands

    def close(self, timeout: float = 2.0) -> None:
        """Send what was published and answered, for at most `timeout` seconds, and hang up."""
        self._thread.call(self._flush(timeout))
        self._thread.stop()

    def _soon(self, callback: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # closed: a late word of a rank that ends
            self._thread.loop.call_soon_threadsafe(callback, *arguments)

    def _take_begin(self) -> None:
        self._begun = True
        self._put(_BEGUN)

    def _take_state(self, line: bytes) -> None:
        self._state, replaced = line, self._state
        self._outbox = [waiting for waiting in self._outbox if waiting is not replaced]
        self._put(line)

    def _take_reply(self, number: str, reply: Message) -> None:
        line = _encode({"id": number, **reply})
        self._replies[number] = line
        self._put(line)

    def _take_command(self, message: Message) -> None:
        number = message["id"]
        if number not in self._replies:
            self._replies[number] = None
            reply = lambda content: self._soon(self._take_reply, number, content)  # noqa: E731
            self._commands.put(Command(message["command"], message["arguments"], reply))
        elif (line := self._replies[number]) is not None:
            self._put(line)  # asked again: the answer was lost with the line that it went over

    def _put(self, line: bytes) -> None:
        self._outbox.append(line)
        self._all_sent.clear()
        self._news.set()

    async def _flush(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._all_sent.wait(), seconds)

    async def _run(self) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path, limit=LINE_LIMIT)
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if self._begun and _BEGUN not in self._outbox:
                self._put(_BEGUN)
            if self._state is not None and self._state not in self._outbox:
                self._put(self._state)
            transmitting = asyncio.create_task(self._transmit(writer))
            try:
                async for line in reader:
                    self._take_command(json.loads(line))
            except (OSError, ValueError):
                log.warning("The line to the supervisor broke", exc_info=True)
            finally:
                transmitting.cancel()
                writer.close()
            await asyncio.sleep(RETRY_SECONDS)

    async def _transmit(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)  # what is drained has left the process
        with suppress(OSError):  # the line broke: what is left goes over the next one
            while True:
                self._news.clear()
                while self._outbox:
                    line = self._outbox[0]
                    writer.write(line)
                    await writer.drain()
                    if line in self._outbox:  # a newer state may have replaced it meanwhile
                        self._outbox.remove(line)
                self._all_sent.set()
                await self._news.wait()
