"""Perplexity by category, on texts of one's own: how well a model foretells them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arctic_workers.evaluation.scores import Parts, Score
from arctic_workers.evaluation.suites.form import DataError, read_rows


@dataclass(frozen=True)
class Passage:
    """One text, and what is known of it once it was read by the model."""

    name: str
    category: str
    text: str


class Perplexity:
    """Texts in JSON lines with `text` and `category`."""

    name = "perplexity"
    rules = (
        "exp of the mean negative log-likelihood a token, over all of a category's tokens but each text's first; and "
        "bits a byte, by which models with other tokenizers may be compared."
    )

    def __init__(self, path: Path) -> None:
        rows = read_rows(path, {"text": object, "category": object})
        self.passages: Sequence[Passage] = [
            Passage(f"perplexity/{number}", str(row["category"]), row["text"]) for number, row in enumerate(rows)
        ]
        for number, passage in enumerate(self.passages, 1):
            if not isinstance(passage.text, str) or not passage.text.strip():
                raise DataError(f"{path}: text {number} is empty: leave the row out")

    def figures(self, read: Mapping[str, tuple[float, int, int]]) -> dict[str, Score]:
        """Return perplexity and bits a byte of each category, with intervals; both are better the lower they are.

        Args:
            read: by passage, nats in all, tokens and bytes that they are of.
        """
        found = {}
        for category in sorted({passage.category for passage in self.passages}):
            nats, tokens, size = zip(
                *(read[passage.name] for passage in self.passages if passage.category == category), strict=True
            )
            by_token = _ratio(nats, tokens)
            by_byte = _ratio([each / math.log(2) for each in nats], size)
            replicates = by_token.replicates(0)
            found[f"perplexity, {category}"] = Score.of(_exp(by_token.mean()), np.exp(np.minimum(replicates, 700)))
            found[f"bits a byte, {category}"] = Score.of(by_byte.mean(), by_byte.replicates(0))
        return found


def _ratio(over: Sequence[float], under: Sequence[int]) -> Parts:
    values = tuple(one / other if other else 0.0 for one, other in zip(over, under, strict=True))
    return Parts(values, tuple(map(float, under)))


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
