"""What an earlier object of the same name has left behind. Pure.

An owner that goes and comes back under its name while the watch of Kubernetes' garbage collector is away is, to the
collector, one that has changed: it takes the old one for living, and keeps its children until it starts again.
"""

from collections.abc import Iterable
from dataclasses import replace

from arctic_api.world import Label
from arctic_operator.cache import Manifest
from arctic_operator.manifests.common import best_name, child_metadata, gateway_name, keys_name, login_name, tls_name
from arctic_operator.observed import Identity
from arctic_operator.plan.actions import Adopt, Delete

UNWATCHED = (
    *(("Secret", tls_name), ("Secret", login_name), ("Secret", keys_name)),
    *(("ConfigMap", gateway_name), ("ConfigMap", best_name)),
)
"""Children that nobody lists, with their names."""


def leftovers(owner: Identity, children: Iterable[Manifest]) -> tuple[list[Delete], list[Adopt]]:
    """Return what to do about the children of objects that had an owner's name before it, and are gone.

    What the operator may not delete is handed to the owner that lives, to go with it. Children that own themselves
    (`kubectl delete --cascade=orphan`) are their maker's wish, and those that are going are no longer ours to see to.
    """
    deletes, earlier = [], set()
    for child in children:
        metadata = child["metadata"]
        uid = metadata["labels"][Label.UID]
        references = metadata.get("ownerReferences") or ()
        if "deletionTimestamp" in metadata or not any(reference["uid"] == uid for reference in references):
            continue
        earlier.add(uid)
        deletes.append(Delete(child["kind"], metadata["namespace"], metadata["name"], metadata["uid"]))
    return deletes, [
        _adopt(kind, name(replace(owner, uid=uid)), owner) for uid in sorted(earlier) for kind, name in UNWATCHED
    ]


def _adopt(kind: str, name: str, owner: Identity) -> Adopt:
    metadata = child_metadata(owner, name)
    return Adopt(kind, owner.namespace, name, metadata["labels"], metadata["ownerReferences"][0])
