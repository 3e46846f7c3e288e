"""The termination message: how a pod's last word is written."""

import logging
import os
from collections.abc import Callable

from arctic_api.common import Resource
from arctic_api.world import EvaluationReport, ExitCode, Report, SourceReport, StageReport

FAILED = 1
"""Exit code of a failure that counts."""
LIMIT = 4096
"""Bytes that a kubelet reads of a termination message."""

log = logging.getLogger(__name__)


def exit_code(outcome: str) -> int:
    """Return what a pod of a Job exits with, by its report's outcome: the contract with the operator."""
    codes: dict[str, int] = {
        "succeeded": ExitCode.DONE,
        "interrupted": ExitCode.INTERRUPTED,
        "refused": ExitCode.BAD_INPUT,
        "failed": FAILED,
    }
    return codes[outcome]


def write_report(report: Report | EvaluationReport, path: str) -> None:
    """Write a report to the termination message file, cut to what a kubelet reads. Never raises."""
    write_word(report, lambda: encode(report) if isinstance(report, Report) else encode_evaluation(report), path)


def write_word(report: Resource, encoded: Callable[[], bytes], path: str) -> None:
    """Write a report, as `encoded` encodes it, to the termination message file.

    The file is a mount of its own in a pod, so it can't be renamed over: it is written by one call. Never raises: the
    exit code must not depend on whether somebody could be told why.
    """
    try:
        content = encoded()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except Exception:
        log.exception("The report could not be written to %s: %s", path, report)


def legible(text: str) -> str:
    """Return a text that JSON can say: half a surrogate pair, as of a file's name that is no UTF-8, is written out."""
    return text.encode(errors="backslashreplace").decode()


def encode(report: Report, limit: int = LIMIT) -> bytes:
    """Return the report as JSON of at most `limit` bytes: cut are message, sources, old stages, evaluation."""
    message, sources, stages, evaluation = legible(report.message), report.sources, report.stages, report.evaluation
    while (excess := len(content := _json(report, message, sources, stages, evaluation)) - limit) > 0:
        if message:
            # A character takes up to six bytes (`\u0007`), so this never cuts more than is needed.
            message = message.removesuffix("…")[: -(excess // 6 + 1)]
            message += "…" if message else ""
        elif sources:
            sources = []
        elif stages:
            stages = stages[1:]
        elif evaluation:
            evaluation = {}  # said, where nothing would leave the figures of an earlier attempt
        else:
            break
    return content


def _json(
    report: Report,
    message: str,
    sources: list[SourceReport],
    stages: list[StageReport],
    evaluation: dict[str, float] | None,
) -> bytes:
    cut = report.model_copy(update={"message": message, "sources": sources, "stages": stages, "evaluation": evaluation})
    return cut.model_dump_json(by_alias=True, exclude_none=True).encode()


def encode_evaluation(report: EvaluationReport, limit: int = LIMIT) -> bytes:
    """Return the report as JSON of at most `limit` bytes: cut are messages, then all figures but the suites' own."""
    for letters, figures in ((1024, None), (256, None), (64, None), (64, 1), (16, 1), (16, 0)):
        suites = [
            suite.model_copy(update={"message": legible(suite.message)[:letters], "figures": suite.figures[:figures]})
            for suite in report.suites
        ]
        cut = report.model_copy(update={"message": legible(report.message)[: 4 * letters], "suites": suites})
        content = cut.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True).encode()
        if len(content) <= limit:
            break
    return content
