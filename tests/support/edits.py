"""The guide's table of what edits of a training do, and an edit of each of its fields, for both sides to be held to."""

import re
from pathlib import Path
from typing import Any

from api_cases import IFEVAL, TRAINING

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "train.md"
ONLY_AHEAD = "only ahead"
"""The effect of edits that workers refuse where they would change what has been trained."""

LAWS = {"name": "laws", "category": "general", "uri": "file:///laws"}

EDITS: dict[str, dict[str, Any]] = {
    "restart": {"spec.restart": {"limit": 3}},
    "restart.lossSpike": {"spec.restart": {"lossSpike": "skip"}},
    "startDeadline": {"spec.startDeadline": "1h"},
    "activeDeadline": {"spec.activeDeadline": "1h"},
    "ttlAfterFinished": {"spec.ttlAfterFinished": "1h"},
    "pricePerGPUHour": {"spec.pricePerGPUHour": "2.50"},
    "expectedTokensPerSecond": {"spec.expectedTokensPerSecond": 5000},
    "paused": {"spec.paused": True},
    "stopAfter": {"spec.stopAfter": "general"},
    "suspend": {"spec.suspend": True},
    "suspendAt": {"spec.suspendAt": "2M"},
    "curriculum": {"spec.curriculum.stages.0.learningRate.peak": 1e-3},
    "curriculum.stages.tokens": {"spec.curriculum.stages.0.tokens": "2M"},
    "curriculum.stages.name": {"spec.curriculum.stages.0.name": "other"},
    "curriculum.stages.mixture": {
        "spec.curriculum.stages.0.mixture": {"books": 1, "laws": 1},
        "spec.data.sources": [*TRAINING["spec"]["data"]["sources"], LAWS],
    },
    "curriculum.stages.finalMixture": {"spec.curriculum.stages.0.finalMixture": {"books": 1}},
    "curriculum.stages.tokensPerStep": {"spec.curriculum.stages.0.tokensPerStep": 8192},
    "curriculum.stages.sequenceLength": {"spec.curriculum.stages.0.sequenceLength": 64},
    "batch.tokensPerStep": {"spec.batch.tokensPerStep": 8192},
    "data": {"spec.data.sources.0.uri": "file:///other"},
    "data.simulatedTokens": {"spec.data.simulatedTokens": "10M"},
    "data.validation": {"spec.data.validation": {"fraction": 0.1}},
    "tracking": {"spec.tracking": {"wandb": {"project": "p"}}},
    "batch": {"spec.batch.microBatchSize": 2},
    "optimizer": {"spec.optimizer": {"beta1": 0.8}},
    "parallelism": {"spec.parallelism.nodes": 4},
    "precision": {"spec.precision": "fp8"},
    "evaluation": {"spec.evaluation": {"suites": ["perplexity"]}},
    "evaluation.data": {"spec.evaluation": {"suites": ["ifeval"], "data": IFEVAL}},
    "evaluation.resources": {
        "spec.evaluation": {"suites": ["ifeval"], "data": IFEVAL, "resources": {"limits": {"cpu": 1}}}
    },
    "checkpoint": {"spec.checkpoint.keep": 9},
    "priorityClassName": {"spec.priorityClassName": "high"},
    "image": {"spec.image": "other:1"},
    "resources": {"spec.resources": {"limits": {"cpu": 1}}},
    "template": {"spec.template": {"labels": {"team": "a"}}},
    "model": {"spec.model": {"preset": "arctic-small"}},
    "tokenizer": {"spec.tokenizer": {"train": {"vocabSize": 400}}},
    "seed": {"spec.seed": 1},
    "checkpoint.volume": {"spec.checkpoint.volume": {"claimName": "other"}},
    "queue": {"spec.queue": "queue"},
}
"""An edit of each field of the table."""


def table() -> dict[str, str]:
    """The effect that the guide names for each field."""
    edit = GUIDE.read_text().split("## Edit")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in edit.splitlines() if line.startswith("| `")]
    return {field: effect.strip() for fields, effect in rows for field in re.findall("`([^`]+)`", fields)}
