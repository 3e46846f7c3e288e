"""The record of a revision: all that its groups are made of, in the cluster's own kind for that."""

from arctic_api.common import BaseWeights
from arctic_api.world import Label
from arctic_operator.manifests.common import Manifest, base_name, child_metadata
from arctic_operator.observed import HISTORY, REVISION_ANNOTATION, Inference


def recorded_revision(inference: Inference, revision: str, weights: BaseWeights | None) -> Manifest:
    """Return a ControllerRevision (apps/v1), whose data the API server lets nobody change."""
    identity = inference.identity
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": child_metadata(
            identity,
            f"{base_name(identity)}-{revision}",
            role=HISTORY,
            labels={Label.REVISION.value: revision},
            annotations={REVISION_ANNOTATION: inference.revision},
        ),
        "data": {
            "spec": {field: value for field, value in inference.made_of.items() if value is not None},
            "fields": sorted(inference.made_of),
            **({"weights": weights.wire()} if weights else {}),
        },
        "revision": inference.generation,
    }
