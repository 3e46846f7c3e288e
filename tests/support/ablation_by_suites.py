"""An ablation of two mixtures that a suite judges, with a planted answer: commas are learnt from the one alone."""

from pathlib import Path
from typing import Any

from tiny_suites import COMMAS, write_commas
from training_faults import small_training

STEP, STEPS = 256, 8
BETTER = "plain"
"""Name of the variant that is to be found; `base` is the other one."""


def by_suites(text: Path, mounted: Path) -> dict[str, Any]:
    """Return the manifest, and write what it reads.

    Args:
        text: folder for that, which is not there yet.
        mounted: what that folder is called in the manifest.
    """
    write_commas(text)
    training = small_training(text, "unread", STEPS, 1000, tokens_per_step=STEP)["spec"]
    for field in ("parallelism", "restart", "template"):
        del training[field]
    training["model"]["config"]["max_position_embeddings"] = 1400  # room for what IFEval lets a model answer
    sources = [{"name": name, "category": "general", "uri": f"file://{mounted}/{name}"} for name in COMMAS]
    stages = training["curriculum"]["stages"]
    for stage in stages:
        stage["mixture"] = {"strewn": 1}
    fields = [f"curriculum.stages.{stage['name']}.mixture" for stage in stages]
    training |= {
        "batch": training["batch"] | {"microBatchSize": 8},
        "data": {"sources": sources, "validation": {"fraction": 0.1}},
        "evaluation": {
            "suites": ["ifeval"],
            "data": [{"name": "ifeval", "uri": f"file://{mounted}/ifeval.jsonl"}],
        },
    }
    return {
        "apiVersion": "arctic.dev/v1alpha1",
        "kind": "ArcticAblation",
        "metadata": {"name": "judged"},
        "spec": {
            "training": training,
            "changes": [{"name": BETTER, "set": [{"field": field, "value": {"plain": 1}} for field in fields]}],
            "objective": {"suites": {"ifeval": 1}},
        },
    }
