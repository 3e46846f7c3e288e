"""The trainings of an ablation, and what it leaves."""

import json

from arctic_ablation.study import Step
from arctic_ablation.variants import Wire
from arctic_api import API_VERSION
from arctic_api.training import KIND
from arctic_operator.manifests.common import Manifest, best_name, child_metadata
from arctic_operator.observed import Identity

BEST_FILE = "training.json"


def trial(identity: Identity, step: Step) -> Manifest:
    """Return an ArcticTraining that goes as far as it may now."""
    # Always there: what is left out of an apply is no difference. Past its end it says nothing.
    suspend_at = step.specification.get("suspendAt", 2 * step.run.total)
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": child_metadata(identity, step.run.name),
        "spec": step.specification | {"suspendAt": suspend_at},
    }


def best(identity: Identity, training: Wire) -> Manifest:
    """Return the ConfigMap with the winner's manifest, which `kubectl apply` takes as it is."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(identity, best_name(identity)),
        "data": {BEST_FILE: json.dumps(training, indent=2) + "\n"},
    }
