"""From what a pod is told to its exit code: reading the world, choosing the role, and saying why it ended."""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

from pydantic import ValidationError

from arctic_api.world import (
    NODE_RANK_VARIABLE,
    TERMINATION_MESSAGE,
    WORLD_VARIABLE,
    ExitCode,
    InferenceGroup,
    Report,
)
from arctic_workers.control.report import write_report
from arctic_workers.inference.engine import Refused
from arctic_workers.inference.engines.native.engine import NativeEngine
from arctic_workers.inference.engines.native.follower import Follower
from arctic_workers.inference.engines.native.group import bring_up
from arctic_workers.inference.engines.native.plan import plan_group
from arctic_workers.inference.http.text import Text, TextError
from arctic_workers.inference.leader import Leader
from arctic_workers.inference.pod import FAILED, Pod

log = logging.getLogger(__name__)


def run(environment: Mapping[str, str]) -> int:
    """Be one pod; return its exit code, with the reason in the log and in the termination message."""
    message = TERMINATION_MESSAGE
    try:
        group, rank = read_world(environment)
        message = group.termination_message
        _serve(group, rank)
    except Refused as refusal:
        return _end(message, ExitCode.BAD_INPUT, Report(outcome="refused", reason="BadInput", message=str(refusal)))
    except Exception as error:
        log.debug("Failed", exc_info=True)
        report = Report(outcome="failed", reason=type(error).__name__, message=str(error) or repr(error))
        return _end(message, FAILED, report)
    return _end(message, ExitCode.DONE, Report(outcome="succeeded", reason="Stopped"))


def read_world(environment: Mapping[str, str]) -> tuple[InferenceGroup, int]:
    """Return the group and this pod's pipeline rank. Raises Refused."""
    if missing := [name for name in (WORLD_VARIABLE, NODE_RANK_VARIABLE) if name not in environment]:
        raise Refused(f"{' and '.join(missing)} must be set: the operator and `arctic serve` set them")
    try:
        group = InferenceGroup.model_validate_json(environment[WORLD_VARIABLE])
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise Refused(f"{WORLD_VARIABLE} is not an InferenceGroup: {place}: {fault['msg']}") from None
    text = environment[NODE_RANK_VARIABLE]
    ranks = len(group.hosts)
    if not text.isdecimal() or int(text) >= ranks:
        raise Refused(f"{NODE_RANK_VARIABLE} is {text!r}; the group's hosts are numbered 0 to {ranks - 1}")
    return group, int(text)


def _serve(group: InferenceGroup, rank: int) -> None:
    plan = plan_group(group)
    pod = Pod(group, rank)
    if rank:
        follower = Follower(pod, plan)
        with pod.controlled(follower):
            follower.run()
        return
    try:
        text = Text(plan.folder)
    except TextError as error:
        raise Refused(str(error)) from None
    if text.vocabulary > plan.config.vocab_size:
        raise Refused(
            f"{plan.folder}: the tokenizer's tokens go up to {text.vocabulary - 1} and the model's to "
            f"{plan.config.vocab_size - 1}; "
            "they are not of one model"
        )
    engine = NativeEngine(
        plan,
        partial(bring_up, plan, group, rank, on_loss=pod.lose, on_stop=pod.stop.request),
        beat=pod.heartbeat.beat,
        on_failure=lambda error: pod.lose(str(error)),
    )
    leader = Leader(pod, engine, text, plan.config.vocab_size)
    with pod.controlled(leader):
        asyncio.run(leader.run())


def _end(message: str, code: int, report: Report) -> int:
    log.log(logging.INFO if code == ExitCode.DONE else logging.ERROR, "%s %s", report.reason, report.message)
    write_report(report, message)
    return int(code)
