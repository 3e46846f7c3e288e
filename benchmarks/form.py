"""The one form of all benchmarks: a quiet machine, rounds in alternation, a table for people, then a line of JSON."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arctic_cluster import paths
from benchmarks.drawing import Chart, svg
from benchmarks.results import DRAWINGS, FILE, Results, folder_of, regressions, software, this_machine

QUIET = 0.25
"""Share of all cores' time that others may use while a benchmark begins."""
_PATIENCE = 120.0


@dataclass(frozen=True)
class Told:
    """What the command line says."""

    benchmark: str
    """Its own name."""
    quick: bool
    keep: bool
    """Whether the figures and drawings are to be kept in this folder."""


def arguments(description: str | None, quick: str) -> Told:
    """Parse the command line; `quick` says what `--quick` leaves out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help=quick)
    extent.add_argument("--keep", action="store_true", help=f"keep the figures in {FILE.name}")
    given = parser.parse_args()
    return Told(Path(sys.argv[0]).stem, given.quick, given.keep)


def wait_for_quiet() -> None:
    """Return when the machine has nothing else to do; ends the process with a sentence if that takes too long.

    Others' work makes more than noise: threads that wait for each other by spinning lose all their speed.
    """
    deadline = time.monotonic() + _PATIENCE
    while (share := _busy_share()) > QUIET:
        if time.monotonic() > deadline:
            sys.exit(f"{share:.0%} of this machine's cores are busy with other work: end it, then start this again")


def _busy_share() -> float:
    before = _times()
    time.sleep(2.0)
    after = _times()
    total = sum(after) - sum(before)
    idle = sum(after[3:5]) - sum(before[3:5])
    return 1.0 - idle / total


def _times() -> list[int]:
    """Ticks of all cores: user, nice, system, idle, waiting for a disk, and others."""
    return [int(ticks) for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def in_alternation(rounds: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Take each measure once a round, so that what changes on the machine meets all of them; values by name."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        for name, measure in measures.items():
            taken[name].append(measure())
            note(f"round {number + 1} of {rounds}: {name} {taken[name][-1]:.4g}")
    return taken


def repeated(measure: Callable[[], float], seconds: float = 3.0) -> Callable[[], float]:
    """Return a measure that takes one again and again for so long, and gives the median: one may be over too soon."""

    def take() -> float:
        end = time.monotonic() + seconds
        values = [measure()]
        while time.monotonic() < end:
            values.append(measure())
        return statistics.median(values)

    return take


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the rounds' ratios: a machine that slows down for a while slows both of a round."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def spread(values: Sequence[float]) -> str:
    """Show a median, with the least and the greatest value where there are several."""
    median = statistics.median(values)
    if len(values) == 1:
        return f"{median:.4g}"
    return f"{median:.4g} ({min(values):.4g} to {max(values):.4g})"


def note(line: str) -> None:
    """Tell how far the benchmark is, on standard error."""
    print(line, file=sys.stderr, flush=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, the first column flush left."""
    cells = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    print(f"\n{title}")
    for row in cells:
        first, *others = (
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join((first, *others)).rstrip())


def draw(told: Told, chart: Chart, name: str) -> None:
    """Draw a chart: beside the figures where they are kept, else in the cache."""
    folder = DRAWINGS / folder_of(this_machine()) if told.keep else paths.cache() / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    path.write_text(svg(chart))
    note(f"drawn: {path}")


def finish(
    told: Told,
    figures: Mapping[str, float],
    *,
    less_is_better: Collection[str] = (),
    unjudged: Collection[str] = (),
    card: str | None = None,
) -> None:
    """Say what has become worse, keep the figures where that is asked for, and print the last line.

    What is `unjudged` only says how much was done. Figures of a `card` are compared and kept with those of its kind,
    whatever machine it is in.
    """
    rounded = {name: round(value, 4) for name, value in figures.items()}
    machine, results = card or this_machine(), Results(FILE.read_text() if FILE.exists() else "")
    judged = {name: value for name, value in rounded.items() if name not in unjudged}
    for sentence in regressions(results.of(machine, told.benchmark), judged, less_is_better):
        note(sentence)
    if told.keep:
        results.keep(machine, told.benchmark, rounded, software())
        FILE.write_text(results.text([drawing.relative_to(FILE.parent) for drawing in DRAWINGS.glob("*/*.svg")]))
    print(last_line(rounded, card))


def last_line(figures: Mapping[str, float], card: str | None = None) -> str:
    """Return figures as JSON, those of a card with its name."""
    return json.dumps({**({} if card is None else {"card": card}), **figures})
