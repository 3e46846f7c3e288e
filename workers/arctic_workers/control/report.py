"""The termination message: how a pod's last word is written."""

import logging
import os

from arctic_api.world import AblationReport, EvaluationReport, ExitCode, Report, SourceReport, StageReport

FAILED = 1
"""Exit code of a failure that counts."""
LIMIT = 4096
"""Bytes that a kubelet reads of a termination message."""

log = logging.getLogger(__name__)


LastWord = Report | EvaluationReport | AblationReport


def exit_code(report: LastWord) -> int:
    """Return what a pod of a Job exits with: the contract with the operator."""
    codes: dict[str, int] = {
        "succeeded": ExitCode.DONE,
        "interrupted": ExitCode.INTERRUPTED,
        "refused": ExitCode.BAD_INPUT,
        "failed": FAILED,
    }
    return codes[report.outcome]


def write_report(report: LastWord, path: str) -> None:
    """Write the report to the termination message file, cut to what a kubelet reads.

    The file is a mount of its own in a pod, so it can't be renamed over: it is written by one call. Never raises: the
    exit code must not depend on whether somebody could be told why.
    """
    try:
        content = _encoded(report)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except Exception:
        log.exception("The report could not be written to %s: %s", path, report)


def _encoded(report: LastWord) -> bytes:
    if isinstance(report, Report):
        return encode(report)
    return encode_evaluation(report) if isinstance(report, EvaluationReport) else encode_ablation(report)


def encode(report: Report, limit: int = LIMIT) -> bytes:
    """Return the report as JSON of at most `limit` bytes: cut are message, sources, old stages, evaluation."""
    message, sources, stages, evaluation = report.message, report.sources, report.stages, report.evaluation
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
            evaluation = None
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
            suite.model_copy(update={"message": suite.message[:letters], "figures": suite.figures[:figures]})
            for suite in report.suites
        ]
        cut = report.model_copy(update={"message": report.message[: 4 * letters], "suites": suites})
        content = cut.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True).encode()
        if len(content) <= limit:
            break
    return content


def encode_ablation(report: AblationReport, limit: int = LIMIT) -> bytes:
    """Return the report as JSON; what is foretold can't be cut, and one too long says that it is."""
    cut = report.model_copy(update={"message": report.message[:256]})
    content = cut.model_dump_json(by_alias=True, exclude_none=True).encode()
    if len(content) <= limit:
        return content
    words = f"the mixtures take {len(content)} bytes of {limit} that a pod can tell: write fewer sources, or stages"
    return encode_ablation(AblationReport(outcome="refused", reason="TooManySources", message=words))
