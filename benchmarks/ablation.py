"""Ablations whose answer is known: is it found, in how few tokens, and does what is foretold come true?

Four languages are trained on, and a held-out category is made of two of them. First twelve small Arctics that differ in
their mixture, halved again and again (ASHA), are to find the one that is planted; `arctic ablate` is ended in the
middle and started again. Then a swarm with drawn mixtures of three stages foretells the best curriculum; it is trained
with seeds that the swarm has not seen, as are the one by hand and the proportional one. Each of its losses has to be
within the interval that was stated before, and their mean below those of both others.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from arctic_ablation.swarm.draws import BY_HAND, FORETOLD, PROPORTIONAL
from arctic_cluster.paths import STORE
from arctic_model.config import ArcticConfig
from arctic_workers.ablation.writing import RESULTS
from benchmarks.drawing import Chart
from benchmarks.form import arguments, draw, finish, note, print_table, wait_for_quiet
from benchmarks.planted import CATEGORY, SOURCES, TARGET, write

TOKENS_PER_STEP, LENGTH, BATCH = 2048, 64, 32
STEPS = 90
SWARM, QUICK_SWARM, CONFIRMED = 32, 12, 2
FACTOR, FIRST = 3, STEPS // 9 * TOKENS_PER_STEP
MIXTURES: Sequence[Mapping[str, float]] = (
    {"alpha": 1},
    {"alpha": 0.25, "beta": 0.25, "gamma": 0.25, "delta": 0.25},
    {"beta": 1},
    {"alpha": 0.5, "beta": 0.5},
    {"gamma": 0.5, "delta": 0.5},
    {"alpha": 0.4, "beta": 0.3, "gamma": 0.3},
    {"delta": 1},
    TARGET,
    {"gamma": 1},
    {"beta": 0.2, "gamma": 0.2, "delta": 0.6},
    {"alpha": 0.5, "gamma": 0.5},
    {"beta": 0.5, "delta": 0.5},
)
"""The planted one among those that are wrong, some of them only half."""
BY_HAND_STAGES = {
    "general": {"alpha": 0.7, "beta": 0.2, "delta": 0.1},
    "enterprise": {"alpha": 0.2, "beta": 0.5, "delta": 0.3},
    "reasoning": {"beta": 0.2, "gamma": 0.5, "delta": 0.3},
}
"""General skills first, then code, then mathematics: what one would write who doesn't know the objective."""


def training(folder: Path, stages: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return the specification of a training of some 100,000 parameters that takes seconds."""
    config = ArcticConfig.preset("arctic-tiny").replace(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        moe_layer_frequency=2,
        num_local_experts=4,
        max_position_embeddings=LENGTH,
    )
    tokens = STEPS * TOKENS_PER_STEP // len(stages)
    return {
        "model": {"config": config.to_dict()},
        "tokenizer": {"train": {"vocabSize": 300}},
        "data": {
            "sources": [
                {"name": name, "category": category, "uri": f"file://{folder}/{name}"}
                for name, category in SOURCES.items()
            ],
            "validation": {"sources": [{"name": "target", "category": CATEGORY, "uri": f"file://{folder}/target"}]},
        },
        "curriculum": {
            "stages": [
                {
                    "name": name,
                    "tokens": tokens,
                    "mixture": dict(mixture),
                    "learningRate": {
                        "peak": 4e-3,
                        "final": 2e-3,
                        "warmupTokens": 2 * TOKENS_PER_STEP,
                        "schedule": "wsd",
                    },
                    "sequenceLength": LENGTH,
                }
                for name, mixture in stages.items()
            ]
        },
        "batch": {"tokensPerStep": TOKENS_PER_STEP, "microBatchSize": BATCH},
        "checkpoint": {"volume": {"claimName": STORE}, "every": {"steps": 1000}},
    }


def manifest(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of an ablation."""
    common = {"objective": {"perplexity": {CATEGORY: 1}}, "parallelism": 2}
    return {
        "apiVersion": "arctic.dev/v1alpha1",
        "kind": "ArcticAblation",
        "metadata": {"name": name},
        "spec": {**common, **spec},
    }


def halved(folder: Path) -> dict[str, Any]:
    """Return the ablation that is to find the planted mixture."""
    grid = [{"field": "curriculum.stages.only.mixture", "values": [dict(mixture) for mixture in MIXTURES]}]
    base = training(folder, {"only": MIXTURES[1]})
    return manifest("halved", {"training": base, "grid": grid, "halving": {"factor": FACTOR, "first": FIRST}})


def searched(folder: Path, runs: int) -> dict[str, Any]:
    """Return the ablation that is to foretell the best curriculum."""
    around = dict.fromkeys(SOURCES, 1.0)
    mixture = {"runs": runs, "around": around, "confirm": CONFIRMED}
    return manifest("searched", {"training": training(folder, BY_HAND_STAGES), "mixture": mixture})


class Ablation:
    """`arctic ablate` on a manifest.

    Args:
        content: the manifest.
        volumes: folder of the claims.
        scratch: folder for the manifest.
    """

    def __init__(self, content: dict[str, Any], volumes: Path, scratch: Path) -> None:
        self.name = content["metadata"]["name"]
        self._file, self._volumes = scratch / f"{self.name}.json", volumes
        self._file.write_text(json.dumps(content))

    def run(self, until: int | None = None) -> int:
        """Run it to its end, or end it once it has said so many lines; returns the exit code."""
        command = [sys.executable, "-c", "from arctic_cli.main import main; main()", "ablate", "-f", str(self._file)]
        start, lines = time.monotonic(), 0
        with subprocess.Popen(
            [*command, "--volumes", str(self._volumes)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                note(f"{self.name} {time.monotonic() - start:5.1f} s: {line.rstrip()}")
                lines += 1
                if lines == until:
                    process.send_signal(signal.SIGTERM)
        return process.returncode

    def results(self) -> dict[str, Any]:
        """Return what it has found."""
        [path] = self._volumes.glob(f"{STORE}/**/{self.name}-*/{RESULTS}")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def find_planted(folder: Path, volumes: Path, scratch: Path) -> dict[str, Any]:
    """Run the halved ablation, ended in the middle once, and return what it has found."""
    ablation = Ablation(halved(folder), volumes, scratch)
    first = ablation.run(until=len(MIXTURES) // 2)
    assert first == 75, f"an interrupted ablation exits with 75, not {first}"
    assert ablation.run() == 0, "it goes on to its end"
    return ablation.results()


def is_planted(best: Mapping[str, Any]) -> bool:
    """Whether a manifest has the planted mixture."""
    [stage] = best["spec"]["curriculum"]["stages"]
    return bool(stage["mixture"] == dict(TARGET))


def show(planted: Mapping[str, Any], swarm: Mapping[str, Any]) -> None:
    """Print the ranking, and what was foretold beside what came."""
    print_table(
        "Twelve mixtures, halved",
        ("mixture", "tokens", "loss"),
        [(rank["variant"], f"{rank['tokens']:,}", f"{rank['objective']:.4f}") for rank in planted["ranking"]],
    )
    found = swarm["swarm"]
    print_table(
        "Three stages x four sources: nats a token on the held-out category",
        ("curriculum", "foretold", "95% interval of all runs", *(f"seed {number + 1}" for number in range(CONFIRMED))),
        [
            (
                name,
                f"{each['value']:.4f}",
                f"{each['low']:.4f} to {each['high']:.4f}",
                *(f"{value:.4f}" for value in found["confirmed"][name]),
            )
            for name, each in found["forecasts"].items()
        ],
    )
    print_table(
        "The curriculum that is foretold as the best",
        ("stage", *SOURCES),
        [(stage, *(f"{row[name]:.3f}" for name in SOURCES)) for stage, row in found["foretold"].items()],
    )


def figures(planted: Mapping[str, Any], swarm: Mapping[str, Any]) -> dict[str, float]:
    """Return what the last line says."""
    forecast, confirmed = swarm["swarm"]["forecasts"][FORETOLD], swarm["swarm"]["confirmed"]
    within = all(forecast["low"] <= value <= forecast["high"] for value in confirmed[FORETOLD])
    best = fmean(confirmed[FORETOLD])
    return {
        "tokens_of_grid": planted["tokens"] / planted["tokens of all"],
        "found_planted": float(is_planted(planted["best"])),
        "swarm_within_interval": float(within),
        "beats_proportional": float(best < min(fmean(confirmed[name]) for name in (PROPORTIONAL, BY_HAND))),
    }


def main() -> None:
    """Train, interrupt, print."""
    told = arguments(__doc__, f"a swarm of {QUICK_SWARM} instead of {SWARM}")
    wait_for_quiet()
    with tempfile.TemporaryDirectory(prefix="arctic-ablation-") as place:
        scratch = Path(place)
        text, volumes = scratch / "text", scratch / "volumes"
        volumes.mkdir()
        write(text)
        planted = find_planted(text, volumes, scratch)
        swarm_run = Ablation(searched(text, QUICK_SWARM if told.quick else SWARM), volumes, scratch)
        assert swarm_run.run() == 0, "the swarm comes to its end"
        swarm = swarm_run.results()
    show(planted, swarm)
    law = swarm["scaling"]
    if law is not None:
        points = [(tokens, value) for tokens, value in law["points"]]
        line = [(tokens, value) for tokens, value, _, _ in law["line"]]
        draw(
            told,
            Chart("The foretold curriculum", "tokens", "nats a token", {"trained": points, "law": line}),
            "ablation",
        )
    finish(told, figures(planted, swarm), less_is_better=("tokens_of_grid",))


if __name__ == "__main__":
    main()
