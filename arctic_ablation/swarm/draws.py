"""Mixtures of a swarm: those of the manifest, the proportional one, and others drawn around it."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from arctic_ablation.variants import Variant, Wire, source_weights
from arctic_api.ablation import MixtureSearch
from arctic_api.common import parse_tokens

Weights = npt.NDArray[np.float64]
"""Mixtures of a curriculum: [stages, sources], each row summing to 1."""

BY_HAND, PROPORTIONAL, FORETOLD = "by hand", "proportional", "foretold"
NEARNESS, SPARE = 12.0, 0.25
"""How close others are drawn to a mixture (a Dirichlet distribution's sum), and what a source gets all the same."""
DIGITS = 3
"""Of a weight: what a manifest shows is what is trained."""


class Space:
    """Stages and sources over which mixtures are drawn."""

    def __init__(self, search: MixtureSearch, training: Wire) -> None:
        """Take the stages of a training, and the sources of the search or else those that the training draws from."""
        self.training = training
        around = dict(search.around or source_weights(training))
        total = sum(around.values())
        self.stages: Sequence[str] = [stage["name"] for stage in training["curriculum"]["stages"]]
        self.sources: Sequence[str] = list(around)
        self.around: Weights = np.array([weight / total for weight in around.values()])
        self.shares: Weights = _shares(training)
        self._search = search

    def by_hand(self) -> Weights:
        """Return the mixtures that the training has."""
        stages = self.training["curriculum"]["stages"]
        rows = np.array([[stage["mixture"].get(source, 0.0) for source in self.sources] for stage in stages])
        return np.asarray(rows / rows.sum(axis=1, keepdims=True))

    def proportional(self) -> Weights:
        """Return the mixture around which others are drawn, in all stages."""
        return np.tile(self.around, (len(self.stages), 1))

    def drawn(self, count: int, seed: int) -> list[Weights]:
        """Return drawn mixtures, each stage's by itself: Dirichlet around the proportional one."""
        generator = np.random.default_rng(seed)
        alpha = self._search.concentration * len(self.sources) * self.around
        return [rounded(generator.dirichlet(alpha, len(self.stages))) for _ in range(count)]

    def near(self, weights: Weights, count: int, seed: int) -> list[Weights]:
        """Return mixtures drawn around others, stage by stage."""
        generator = np.random.default_rng(seed)
        alphas = NEARNESS * weights + SPARE
        return [rounded(np.stack([generator.dirichlet(alpha) for alpha in alphas])) for _ in range(count)]

    def candidates(self, count: int, seed: int) -> Weights:
        """Return many mixtures to choose from: [count, stages, sources], corners and what is between them alike."""
        generator = np.random.default_rng(seed)
        sharpness = generator.choice([0.3, 1.0, 3.0], (count, 1, 1))
        draws = generator.gamma(
            sharpness * len(self.sources) * self.around, size=(count, len(self.stages), len(self.sources))
        )
        draws += 1e-12
        return np.asarray(draws / draws.sum(axis=2, keepdims=True))

    def variant(self, name: str, weights: Weights) -> Variant:
        """Return the variant that trains with some mixtures."""
        return Variant(
            name,
            tuple(
                change
                for stage, row in zip(self.stages, weights, strict=True)
                for change in (
                    (f"curriculum.stages.{stage}.mixture", self.named(row)),
                    (f"curriculum.stages.{stage}.finalMixture", None),
                )
            ),
        )

    def written(self, weights: Weights) -> dict[str, str]:
        """Return mixtures as a status has them, by stage: `books:0.2 code:0.8`."""
        return {
            stage: " ".join(f"{name}:{weight:g}" for name, weight in self.named(row).items() if weight)
            for stage, row in zip(self.stages, weights, strict=True)
        }

    def read(self, written: Mapping[str, str]) -> Weights | None:
        """Return mixtures from what `written` made of them; None where they are of other stages or sources."""
        weights = np.zeros((len(self.stages), len(self.sources)))
        try:
            for row, stage in enumerate(self.stages):
                for part in written[stage].split():
                    name, _, weight = part.rpartition(":")
                    weights[row, self.sources.index(name)] = float(weight)
        except (KeyError, ValueError):
            return None
        return weights if np.allclose(weights.sum(axis=1), 1) else None

    def named(self, row: Weights) -> dict[str, float]:
        """Return one stage's mixture by the sources' names."""
        return {name: float(weight) for name, weight in zip(self.sources, row, strict=True)}


def rounded(weights: Weights) -> Weights:
    """Return mixtures with few digits that sum to 1 still; what is lost goes to each one's largest weight."""
    result = np.round(weights, DIGITS)
    rows = np.arange(len(result))
    result[rows, result.argmax(axis=1)] += 1.0 - result.sum(axis=1)
    return np.asarray(np.round(result, DIGITS))


def _shares(training: Wire) -> Weights:
    """Return the share of each stage in all tokens."""
    tokens = np.array([parse_tokens(stage["tokens"]) for stage in training["curriculum"]["stages"]], dtype=np.float64)
    return np.asarray(tokens / tokens.sum())
