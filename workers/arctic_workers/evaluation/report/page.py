"""Evaluations as one HTML page, with nothing outside it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from arctic_workers.control.report import legible
from arctic_workers.evaluation.progress import DONE
from arctic_workers.evaluation.report.drawing import Point, intervals
from arctic_workers.evaluation.report.evaluated import Evaluated, Example
from arctic_workers.evaluation.run import NAMES
from arctic_workers.evaluation.scores import ENTERPRISE, TOTAL, difference
from arctic_workers.evaluation.suites.perplexity import Perplexity
from arctic_workers.training import report as training_report

_STYLES = (Path(training_report.__file__).with_name("style.css"), Path(__file__).with_name("style.css"))
_LONGEST = 3000
"""Characters of a prompt, an answer or a message that are shown."""
_MEAN_OF = "Enterprise intelligence is the mean of " + "; ".join(
    f"{kind} ({' and '.join(' '.join(figure) for figure in figures)})" for kind, figures in ENTERPRISE.items()
)


def page(evaluated: Sequence[Evaluated]) -> str:
    """Return evaluations side by side as HTML; the first one is what the others are compared with."""
    style = "".join(path.read_text() for path in _STYLES)
    title = " and ".join(model.name for model in evaluated)
    sections = "".join(_suite(name, evaluated) for name in NAMES if _states(name, evaluated) & {DONE, "unfit"})
    return legible(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><h1>{escape(title)}</h1>"
        f"<p>{escape(_asked(evaluated))}</p>{_tiles(evaluated)}<p>{escape(_MEAN_OF)}</p><h2>Scores</h2>{_chart(evaluated)}{_figures(evaluated)}"
        f"{_differences(evaluated)}{_not_run(evaluated)}{sections}</body></html>\n"
    )


def _states(suite: str, evaluated: Iterable[Evaluated]) -> set[str]:
    return {model.suite(suite)["state"] for model in evaluated}


def _asked(evaluated: Sequence[Evaluated]) -> str:
    said = []
    for sampling in {str(model.results["sampling"]): model.results["sampling"] for model in evaluated}.values():
        samples = f"{sampling['samples']} answers a question" if sampling["samples"] > 1 else "one answer a question"
        said.append(f"{samples}, temperature {sampling['temperature']:g}, seed {sampling['seed']}")
    return "; ".join(said)


def _tiles(evaluated: Sequence[Evaluated]) -> str:
    tiles = []
    for model in evaluated:
        found = model.results[TOTAL]
        value = f"{found['value']:.1%}" if found["state"] == DONE else "not run"
        interval = f"{found['low']:.1%} to {found['high']:.1%}" if found["state"] == DONE else escape(found["why"])
        name = f"{model.name}: {TOTAL}" if len(evaluated) > 1 else TOTAL
        tiles.append(f"<div><b>{value}</b><span>{escape(name)}<br>{interval}</span></div>")
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _score(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    digits = 3 if found["value"] < 10 else 1
    return f"{found['value']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def _point(found: Mapping[str, Any] | None) -> Point | None:
    return (found["value"], found["low"], found["high"]) if found else None


def _chart(evaluated: Sequence[Evaluated]) -> str:
    rows: dict[str, list[Point | None]] = {}
    means = [model.results[TOTAL] for model in evaluated]
    if any(mean["state"] == DONE for mean in means):
        rows[TOTAL] = [_point(mean) if mean["state"] == DONE else None for mean in means]
    for name in NAMES:
        if name != Perplexity.name and DONE in _states(name, evaluated):
            figure = next(suite["main figure"] for model in evaluated if (suite := model.suite(name))["state"] == DONE)
            found = [model.suite(name).get("figures", {}).get(figure) for model in evaluated]
            rows[f"{name}, {figure}"] = [_point(each) for each in found]
    return intervals(rows, [model.name for model in evaluated])


def _figures(evaluated: Sequence[Evaluated]) -> str:
    rows = []
    for name in NAMES:
        suites = [model.suite(name) for model in evaluated]
        mains = [suite["main figure"] for suite in suites if "main figure" in suite]
        figures = dict.fromkeys([*mains, *(figure for suite in suites for figure in suite.get("figures", {}))])
        rows += [[name, each, *(_score(suite.get("figures", {}).get(each)) for suite in suites)] for each in figures]
    numbers = range(2, 2 + len(evaluated))
    return _table(["suite", "figure", *(model.name for model in evaluated)], rows, numbers)


def _differences(evaluated: Sequence[Evaluated]) -> str:
    """Return how the others' main figures differ from the first model's, question by question."""
    rows = []
    first = evaluated[0]
    for other in evaluated[1:]:
        for name in NAMES:
            one, two = (model.suite(name).get("by question") for model in (first, other))
            if not one or not two or one.keys() != two.keys():
                continue
            found = difference(one, two)
            sure = "better" if found.low > 0 else "worse" if found.high < 0 else "no difference that chance can't make"
            shown = f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
            rows.append([f"{other.name} over {first.name}", name, shown, sure])
    if not rows:
        return ""
    table = _table(["models", "suite", "difference, paired by question", "which is"], rows, (2,))
    return f"<h2>Compared</h2>{table}"


def _not_run(evaluated: Sequence[Evaluated]) -> str:
    rows = [
        [model.name, name, suite["state"], suite["why"]]
        for model in evaluated
        for name in NAMES
        if (suite := model.suite(name))["state"] != DONE
    ]
    return f"<h2>Not run, or unfit</h2>{_table(['model', 'suite', 'state', 'why'], rows)}" if rows else ""


def _suite(name: str, evaluated: Sequence[Evaluated]) -> str:
    of = next(model.suite(name) for model in evaluated if model.suite(name)["state"] != "not run")
    judge = ", ".join(f"{kind} {share:.2f}" for kind, share in of.get("judge", {}).items())
    judged = f" The judge on its own answers: {judge}." if judge else ""
    kinds = dict.fromkeys(kind for model in evaluated for kind in model.suite(name).get("failures", {}))
    rows = [[kind, *(str(model.suite(name).get("failures", {}).get(kind, 0)) for model in evaluated)] for kind in kinds]
    table = _table(["how answers failed", *(model.name for model in evaluated)], rows, range(1, 1 + len(evaluated)))
    examples = "".join(
        _example(model.name, kind, example) for model in evaluated for kind, example in _in_order(model, name, kinds)
    )
    return f"<h2>{escape(name)}</h2><p>{escape(of['rules'])}{escape(judged)}</p>{table}{examples}"


def _in_order(model: Evaluated, suite: str, kinds: Iterable[str]) -> Iterator[tuple[str, Example]]:
    for kind in kinds:
        for example in model.examples.get(suite, {}).get(kind, ()):
            yield kind, example


def _example(model: str, kind: str, example: Example) -> str:
    parts = {"prompt": example.prompt, "answer": example.answer, "the checker": example.message}
    body = "".join(f"<dt>{name}</dt><dd><pre>{escape(_cut(text))}</pre></dd>" for name, text in parts.items())
    summary = f"<b>{escape(kind)}</b> {escape(example.question)} <small>{escape(model)}</small>"
    return f"<details><summary>{summary}</summary><dl>{body}</dl></details>"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\n... {len(text) - _LONGEST} characters more"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    if not rows:
        return ""
    right = set(numbers)

    def row(cells: Sequence[str], tag: str) -> str:
        marks = (' class="n"' if index in right else "" for index in range(len(cells)))
        return "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True))

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f'<div class="table"><table><tr>{row(head, "th")}</tr>{body}</table></div>'
