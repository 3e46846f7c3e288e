"""From what a pod is told to its exit code: reading the world, choosing the role, and saying why it ended."""

import logging
from collections.abc import Mapping

from pydantic import ValidationError

from arctic_api.engine_rules import engine_problems
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
from arctic_workers.inference.engines import room
from arctic_workers.inference.pod import FAILED

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
    if problems := engine_problems(group.spec):
        raise Refused("; ".join(problems))
    name = group.spec.engine.name
    try:
        run_pod = room(name)
    except ImportError as error:
        sentence = f"engine.name: this image lacks what {name} needs ({error}): name its image in engine.image"
        raise Refused(sentence) from None
    run_pod(group, rank)


def _end(message: str, code: int, report: Report) -> int:
    log.log(logging.INFO if code == ExitCode.DONE else logging.ERROR, "%s %s", report.reason, report.message)
    write_report(report, message)
    return int(code)
