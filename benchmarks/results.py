"""The last figures of each benchmark by kind of machine: kept in a committed file, and compared with later ones.

`benchmarks/RESULTS.md` is what people read and what is compared with: a heading for each kind of machine, a table under
it. Nothing of a machine is told but what decides how fast it may be.
"""

import platform
import re
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path

from arctic_workers.control.cores import available_cores

FILE = Path(__file__).with_name("RESULTS.md")
DRAWINGS = FILE.with_name("drawings")
NOTABLE = 0.1
"""Share by which a figure has to be worse to be called a regression."""
_INTRODUCTION = """\
# Last figures
Kept by `python -m benchmarks.NAME --keep`, `make bench` does so for all; what each measures stands in its own words at
its head. A later run on a like machine says on standard error what has become worse by more than a tenth.
"""
_COLUMNS = ("| benchmark | figure | value | with |", "|---|---|---|---|")
_VECTORS = re.compile(r"avx\d|avx512(f|_bf16|_vbmi)|amx_tile|asimd|sve\d?")

Figures = dict[str, float]
"""By name."""


class Results:
    """Figures by machine and benchmark, as a file's text has them."""

    def __init__(self, text: str = "") -> None:
        self._rows: dict[str, dict[str, tuple[Figures, str]]] = {}
        machine: dict[str, tuple[Figures, str]] = {}
        for line in text.splitlines():
            if line.startswith("## "):
                machine = self._rows.setdefault(line.removeprefix("## "), {})
            elif row := re.fullmatch(r"\| (\w+) \| (\w+) \| (-?[\d.e+-]+) \| (.*) \|", line):
                benchmark, figure, value, software = row.groups()
                machine.setdefault(benchmark, ({}, software))[0][figure] = float(value)

    def of(self, machine: str, benchmark: str) -> Figures:
        """Return the figures that were kept; none where that benchmark has not run on such a machine."""
        figures, _ = self._rows.get(machine, {}).get(benchmark, ({}, ""))
        return figures

    def keep(self, machine: str, benchmark: str, figures: Mapping[str, float], software: str) -> None:
        """Put these in the place of the benchmark's last ones."""
        self._rows.setdefault(machine, {})[benchmark] = (dict(figures), software)

    def text(self, drawings: Collection[Path] = ()) -> str:
        """Return what the file has to say, in an order that no run changes.

        `drawings` are paths from the file's folder, each in the folder of the machine with which it is shown.
        """
        lines = [_INTRODUCTION]
        for machine, benchmarks in sorted(self._rows.items()):
            lines += [f"## {machine}", *_COLUMNS]
            for benchmark, (figures, software) in sorted(benchmarks.items()):
                lines += [f"| {benchmark} | {name} | {value:.10g} | {software} |" for name, value in figures.items()]
            shown = sorted(path for path in drawings if path.parent.name == folder_of(machine))
            lines += ["", *(f"![{path.stem}]({path.as_posix()})\n" for path in shown)]
        return "\n".join(lines).rstrip() + "\n"


def regressions(kept: Mapping[str, float], figures: Mapping[str, float], less_is_better: Collection[str]) -> list[str]:
    """Return a sentence for each figure that is worse than the kept one by more than a tenth of that."""
    sentences = []
    for name in kept.keys() & figures.keys():
        before, now = kept[name], figures[name]
        worse = now - before if name in less_is_better else before - now
        if worse > NOTABLE * abs(before):
            sentences.append(f"regression: {name} is {now:.4g} and was {before:.4g} on such a machine")
    return sorted(sentences)


def folder_of(machine: str) -> str:
    """Return the name of the folder for what is drawn on a kind of machine."""
    return re.sub(r"\W+", "-", machine.lower())


def this_machine() -> str:
    """Return the kind of this machine: the processor's family, its vector units, the cores that may be used."""
    return machine_of(Path("/proc/cpuinfo").read_text(), platform.machine(), available_cores())


def machine_of(cpuinfo: str, architecture: str, cores: int) -> str:
    """The same of what the kernel says of processors (`/proc/cpuinfo`)."""
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", cpuinfo, re.MULTILINE))
    # Arm's names of the same; what is missing is left out.
    family = [fields[name] for name in ("vendor_id", "CPU implementer", "cpu family", "CPU part") if name in fields]
    units = sorted(filter(_VECTORS.fullmatch, set((fields.get("flags") or fields.get("Features") or "").split())))
    return ", ".join((" ".join((architecture, *family)), " ".join(units) or "no vectors", f"{cores} cores"))


def software() -> str:
    """Return the versions that figures depend on, beside our own."""
    return f"torch {version('torch')}, Python {platform.python_version()}, Linux {platform.release().split('-')[0]}"
