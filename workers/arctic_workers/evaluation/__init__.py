"""From a checkpoint to a verdict: the suites that a training runs itself. No torch."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol


class Subject(Protocol):
    """A model under training, as suites see it. Every rank of the world calls the same suites in the same order."""

    @property
    def categories(self) -> Sequence[str]:
        """Categories of which there is held-out text, in the same order on all ranks."""
        ...

    def held_out_loss(self, category: str) -> float:
        """Return the mean cross-entropy, in nats a token, on held-out text of a category."""
        ...


Suite = Callable[[Subject], dict[str, float]]
"""Returns figures by name, the same on all ranks."""


def perplexity(subject: Subject) -> dict[str, float]:
    """Return exp(mean cross-entropy) on held-out text of each category."""
    return {f"perplexity/{category}": _exp(subject.held_out_loss(category)) for category in subject.categories}


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


SUITES: dict[str, Suite] = {"perplexity": perplexity}


def evaluate(suites: Sequence[str], subject: Subject) -> dict[str, float]:
    """Run the suites by their names that a training runs itself, and return all figures.

    The others are run beside it. What is no finite number is left out: JSON, in which figures travel, has none.
    """
    figures: dict[str, float] = {}
    for suite in suites:
        if suite in SUITES:
            figures |= SUITES[suite](subject)
    return {name: figure for name, figure in figures.items() if math.isfinite(figure)}
