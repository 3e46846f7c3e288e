"""The tensor ranks of a pod: processes that rank 0 starts, on a GPU each, and tells what to compute.

Rank 0 is the pod: it alone has the line to other pods, chooses tokens and answers clients. The others are told each
step, as the integers that pods tell each other, over a socket of their own; where the step has hidden states, these
come by a broadcast. Nothing is pickled, and none of them answers but while it loads. A rank that ends before it is told
to is the group's end; if rank 0 ends, the others do.
"""

import logging
import os
import socket
import subprocess
import threading
from array import array
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from arctic_api.world import NODE_RANK_VARIABLE, WORLD_VARIABLE, InferenceGroup
from arctic_model.parallel import TensorSlice
from arctic_workers.control import lifeline
from arctic_workers.control.ports import LOOPBACK
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.native.cuda.tensor import Sums
from arctic_workers.inference.engines.native.link import Message, PeerLost, read_message, write_message
from arctic_workers.inference.engines.native.step import Part, decode_parts, encode_parts

log = logging.getLogger(__name__)

MODULE = "arctic_workers.inference.engines.native.cuda.member"
MEETING = timedelta(minutes=5)
"""How long ranks of a pod wait for each other, which are started at once."""
ENDING = 10.0
"""Seconds that a rank has to end in order."""


class Order(IntEnum):
    """What a message between ranks of a pod is about."""

    STEP = 0
    """Integers are the rows of hidden states that come by a broadcast, none on the first pod, and the step's parts."""
    SIZE = 1
    """The integer is what a rank has, or the least of all."""
    STOP = 2
    """End in order."""
    FAULT = 3
    """A rank can't load. The integer says whether the manifest is at fault; bytes are the sentence."""


class Team:
    """What one rank shares with the others."""

    def __init__(self, share: TensorSlice, device: torch.device, store: Store) -> None:
        """Meet the others, who know the same store: all are here when this returns."""
        self.share = share
        self.device = device
        self.add = Sums(share.ranks)
        """See `CudaRank`."""
        self._store = store
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # They are on this machine. NCCL passes loopback over where it is not told, gloo asks for the machine's name.
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=share.rank,
            world_size=share.ranks,
            timeout=MEETING,
            device_id=device if device.type == "cuda" else None,
        )


class Leader(Team):
    """Rank 0's view."""

    def __init__(
        self,
        group: InferenceGroup,
        pod: int,
        share: TensorSlice,
        device: torch.device,
        on_loss: Callable[[str], None],
    ) -> None:
        """Start the others, who read in the pod's world what to load; `on_loss` is as in `Heartbeats`.

        They end with the thread that calls this.
        """
        self._on_loss = on_loss
        self._ending = threading.Event()
        self._lines: list[socket.socket] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        listener = socket.create_server((LOOPBACK, 0))
        port = listener.getsockname()[1]
        told = {WORLD_VARIABLE: group.model_dump_json(by_alias=True), NODE_RANK_VARIABLE: str(pod)}
        store = TCPStore(
            LOOPBACK, port, share.ranks, True, MEETING, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        for rank in range(1, share.ranks):
            self._start(rank, port, os.environ | told)
        try:
            super().__init__(share, device, store)
        except BaseException:
            self.kill()
            raise

    def _start(self, rank: int, port: int, environment: dict[str, str]) -> None:
        own, theirs = socket.socketpair()
        with theirs:
            command = [*lifeline.command(MODULE), str(rank), str(port), str(theirs.fileno())]
            process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
        self._lines.append(own)
        self._processes.append(process)
        threading.Thread(target=self._watch, args=(rank, process), name=f"tensor rank {rank}", daemon=True).start()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if not self._ending.is_set():
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            self._on_loss(f"tensor rank {rank} of this pod has ended {how}; see its log, which is this pod's")

    def least(self, value: int) -> int:
        """Return the least of all ranks' values, once all have said theirs. Raises Refused or RuntimeError."""
        return min(value, *(self._size_of(rank) for rank in range(1, self.share.ranks)))

    def _size_of(self, rank: int) -> int:
        try:
            message = read_message(self._lines[rank - 1])
        except OSError as error:
            raise PeerLost(f"tensor rank {rank} of this pod is gone") from error
        if message.kind == Order.FAULT and message.raw is not None:
            sentence = f"tensor rank {rank}: {message.raw.numpy().tobytes().decode()}"
            raise Refused(sentence) if message.numbers[0] else RuntimeError(sentence)
        return message.numbers[0]

    def agree(self, value: int) -> None:
        """Tell all what `least`, or other pods, came to."""
        self._tell(Message(Order.SIZE, [value]))

    def begin(self, parts: Sequence[Part], x_TD: Tensor | None) -> None:
        """Tell all of a step, and give them its hidden states. Raises PeerLost."""
        rows = 0 if x_TD is None else len(x_TD)
        self._tell(Message(Order.STEP, array("q", [rows, *encode_parts(parts)])))
        if x_TD is not None:
            dist.broadcast(x_TD, 0)

    def stop(self) -> None:
        """Let all end in order, and wait for it."""
        self._ending.set()
        try:
            self._tell(Message(Order.STOP))
            for process in self._processes:
                process.wait(ENDING)
        except (PeerLost, subprocess.TimeoutExpired):
            log.warning("A tensor rank has not ended in order")
        self.kill()

    def kill(self) -> None:
        """End all now."""
        self._ending.set()
        for process, line in zip(self._processes, self._lines, strict=True):
            process.kill()
            process.wait()
            line.close()

    def _tell(self, message: Message) -> None:
        for rank, line in enumerate(self._lines, start=1):
            try:
                write_message(line, message)
            except OSError as error:
                raise PeerLost(f"tensor rank {rank} of this pod is gone") from error


class Member(Team):
    """The view of another rank."""

    def __init__(self, line: socket.socket, port: int, share: TensorSlice, device: torch.device) -> None:
        self._line = line
        super().__init__(share, device, TCPStore(LOOPBACK, port, share.ranks, False, MEETING))

    def agree(self, value: int) -> int:
        """Say a value; return the least of all ranks'."""
        write_message(self._line, Message(Order.SIZE, [value]))
        return read_message(self._line).numbers[0]

    def next_step(self, hidden_size: int) -> tuple[list[Part], Tensor | None] | None:
        """Wait for the next step and its hidden states, [T, D]; None where it is to end. OSError if rank 0 is gone."""
        message = read_message(self._line)
        if message.kind == Order.STOP:
            return None
        rows, *numbers = message.numbers
        x_TD = torch.empty(rows, hidden_size, device=self.device) if rows else None
        if x_TD is not None:
            dist.broadcast(x_TD, 0)
        return decode_parts(numbers), x_TD
