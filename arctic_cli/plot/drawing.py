"""From the content of files to figures of matplotlib: each has a name, for its file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from arctic_cli.plot import ablation, evaluation, planning

COLOURS = (
    *("0072b2", "d55e00", "009e73", "cc79a7", "e69f00", "56b4e9"),
    *("777777", "332288", "882255", "44aa99", "ddcc77", "117733"),
)
"""Of Okabe and Ito, then of Tol, which colour-blind people tell apart."""
STYLE: Any = {
    "axes.prop_cycle": f"cycler('color', {COLOURS})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "font.size": 9,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.hashsalt": "arctic",
}
"""The same content gives the same file."""
KINDS: Mapping[str, Callable[[Sequence[Any]], Iterator[tuple[str, Figure]]]] = {
    "ablation": ablation.figures,
    "evaluation": evaluation.figures,
    "service": planning.of_a_service,
    "training": planning.of_a_training,
}


def drawn(kind: str, contents: Sequence[Any]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of some contents of one kind, by name; what these have nothing of is left out."""
    with rc_context(STYLE):
        yield from KINDS[kind](contents)
