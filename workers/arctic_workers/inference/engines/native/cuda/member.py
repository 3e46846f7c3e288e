"""A tensor rank of a pod but its first, which starts it (see `team`).

`python -m arctic_workers.inference.engines.native.cuda.member RANK PORT DESCRIPTOR`: of the store in which it meets the
others, and of the line to the first. ARCTIC_WORLD and ARCTIC_NODE_RANK are the pod's.
"""

import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import replace

import torch

from arctic_model.devices import CPU, first_device
from arctic_model.parallel import TensorSlice
from arctic_workers.control.logs import configure_logs
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.native.adapters import load_adapters
from arctic_workers.inference.engines.native.cuda.team import Member, Order
from arctic_workers.inference.engines.native.group import load_rank, share_cores
from arctic_workers.inference.engines.native.link import Message, read_message, write_message
from arctic_workers.inference.engines.native.plan import Plan, plan_group
from arctic_workers.inference.engines.native.runner import Compute, compute_of
from arctic_workers.inference.worker import read_world

log = logging.getLogger(__name__)


def run(rank: int, port: int, line: socket.socket) -> None:
    """Load, and compute what the pod's first rank says until it says that it ends."""
    group, pod = read_world(os.environ)
    plan = plan_group(group)
    share_cores(plan.tensor)
    share = TensorSlice(rank, plan.tensor, plan.whole_experts)
    member = Member(line, port, share, torch.device("cuda", rank) if first_device().type == "cuda" else CPU)
    try:
        compute = _load(plan, pod, member)
    except Exception as error:
        log.exception("Tensor rank %d can't load", rank)
        _tell_fault(line, error)
        return
    while (step := member.next_step(plan.config.hidden_size)) is not None:
        compute.run(*step)


def _load(plan: Plan, pod: int, member: Member) -> Compute:
    """Load what this rank computes with: its first rank alone makes logits."""
    adapters = load_adapters(plan.adapters, plan.config)
    part = replace(plan.slices[pod], lm_head=False)
    model, cache, _ = load_rank(
        plan, pod, part, member.device, member.share, agree=member.agree, neighbours=1, progress=lambda _: None
    )
    compute = compute_of(model, cache, team=member, rounds=plan.rounds_large_steps)
    if adapters:
        compute.adapt(adapters)
    return compute


def _tell_fault(line: socket.socket, error: Exception) -> None:
    """Tell the first rank, and wait for the end that it brings: its own fault, if it has one, is what people read."""
    sentence = torch.frombuffer(bytearray(str(error) or repr(error), "utf-8"), dtype=torch.uint8)
    with suppress(OSError):
        write_message(line, Message(Order.FAULT, [isinstance(error, Refused)], sentence))
        while True:
            read_message(line)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to all processes: the first rank decides
    configure_logs(os.environ)
    run(int(sys.argv[1]), int(sys.argv[2]), socket.socket(fileno=int(sys.argv[3])))
    logging.shutdown()
    os._exit(0)  # recorded steps must not outlive what they talk through, and nobody says in which order these end
