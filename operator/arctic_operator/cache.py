"""What the watches have shown, in memory: objects by kind and uid, and whose children they are. No I/O."""

import json
import math
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from arctic_api import ablation, evaluation, inference, training
from arctic_api.world import Label

Manifest = dict[str, Any]

CUSTOM_KINDS = (training.KIND, inference.KIND, ablation.KIND, evaluation.KIND)
REMEMBERED_DELETIONS = 10_000
CONTAINERS = ("containers", "initContainers")
POD_FIELDS = frozenset({"nodeName", "restartPolicy"})
"""What is read of a pod's specification besides its containers."""
LONG_TEXT = 64
"""Letters from which on a text is hardly another object's too."""
WHOLE = (*CUSTOM_KINDS, "Node")
"""Kinds that each visit reads, of which what was made of an object is told apart by which object it is."""
TEMPLATES = ("Job", "StatefulSet")
"""Kinds that are made once and never compared, with a template of pods in them."""


class Listing(NamedTuple):
    """What the API server answered to a list."""

    items: list[Manifest]
    version: int
    """Resource version of the moment that the answer shows: what is newer is not in it."""


class Key(NamedTuple):
    """A custom resource by name: what is reconciled."""

    kind: str
    namespace: str
    name: str


def key_of(manifest: Manifest) -> Key | None:
    """Return the custom resource that an object is, or is a child of; None if neither."""
    metadata = manifest["metadata"]
    if manifest["kind"] in CUSTOM_KINDS:
        return Key(manifest["kind"], metadata["namespace"], metadata["name"])
    return owner_of(manifest)


def owner_of(manifest: Manifest) -> Key | None:
    """Return the custom resource that an object is a child of, as a training may be of an ablation; None for none."""
    metadata = manifest["metadata"]
    labels = metadata.get("labels", {})
    kind, name = labels.get(Label.KIND), labels.get(Label.NAME)
    namespace = metadata.get("namespace")  # which a node has none of, whatever its labels say
    return Key(kind, namespace, name) if kind in CUSTOM_KINDS and name and namespace else None


def slim(manifest: Manifest) -> Manifest:
    """Return an object without what nobody reads of it, which is most: who wrote which field, what pods are made of.

    Containers keep what is read of them; of what is written again, and so compared, nothing is missing.
    """
    metadata = {name: value for name, value in manifest["metadata"].items() if name != "managedFields"}
    kept = manifest | {"metadata": metadata}
    spec = manifest.get("spec")
    if spec is None:
        return kept
    if manifest["kind"] == "Pod":
        containers = {field: [_container(each) for each in spec.get(field) or ()] for field in CONTAINERS}
        return kept | {"spec": {field: spec[field] for field in POD_FIELDS & spec.keys()} | containers}
    if manifest["kind"] in TEMPLATES:
        return kept | {"spec": {name: value for name, value in spec.items() if name != "template"}}
    return kept


def shared(value: Any) -> Any:
    """Return a value whose names and short texts are kept once for all objects: most of them say the same."""
    if isinstance(value, dict):
        return {sys.intern(name): shared(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shared(each) for each in value]
    return sys.intern(value) if isinstance(value, str) and len(value) < LONG_TEXT else value


def _container(container: Manifest) -> Manifest:
    return {"name": container["name"], "resources": container.get("resources", {})}


def trainings_of(manifest: Manifest) -> Iterator[Key]:
    """Return the trainings whose weights an object of ours names."""
    model = (manifest.get("spec") or {}).get("model") if manifest["kind"] in CUSTOM_KINDS else None
    if isinstance(model, dict):
        begun = model.get("from")
        for name in (model.get("training"), begun.get("training") if isinstance(begun, dict) else None):
            if isinstance(name, str):
                yield Key(training.KIND, manifest["metadata"]["namespace"], name)


def read_json(text: bytes) -> Any:
    """Return what JSON says, however deeply it is nested; names and short texts are kept once for all."""
    try:
        return from_json(text, cache_strings="all")
    except ValueError:  # nested more deeply than this parser goes
        return json.loads(text)


class Cache:
    """Objects as they were seen last; answers to writes count as seen, so that a plan knows what the last one did.

    Children are kept as text, which takes a third of the memory, and are read when they are asked for.
    """

    def __init__(self) -> None:
        self._objects: dict[str, dict[str, Manifest | bytes]] = defaultdict(dict)
        self._children: dict[str, set[tuple[str, str]]] = defaultdict(set)
        self._owners: dict[Key, set[str]] = defaultdict(set)
        self._custom: dict[Key, str] = {}
        self._users: dict[Key, set[tuple[str, str]]] = defaultdict(set)
        """By training, what names its weights."""
        self._gone: OrderedDict[str, float] = OrderedDict()
        """Versions up to which what was removed is not told of any more."""

    def put(self, manifest: Manifest) -> bool:
        """Keep an object unless a newer state of it, or its deletion, is known; tell whether it was news."""
        kind, metadata = manifest["kind"], manifest["metadata"]
        uid = metadata["uid"]
        known = self.same(manifest)
        if not self._is_newer(manifest, known):
            return False
        if known:
            self._forget_child(known)
            self._forget_user(known)
        self._gone.pop(uid, None)
        kept = slim(manifest)
        self._objects[kind][uid] = shared(kept) if kind in WHOLE else _text(kept)
        if kind in CUSTOM_KINDS:
            self._name(Key(kind, metadata["namespace"], metadata["name"]), manifest)
            for name in trainings_of(manifest):
                self._users[name].add((kind, uid))
        owner = metadata.get("labels", {}).get(Label.UID)
        if owner:
            self._children[owner].add((kind, uid))
            if key := owner_of(manifest):
                self._owners[key].add(owner)
        return True

    def _name(self, key: Key, manifest: Manifest) -> None:
        """Let a name mean an object, unless it means a newer one: a late watch tells of the one before it too."""
        named = self.custom(key)
        if named is None or version_of(named) <= version_of(manifest):
            self._custom[key] = manifest["metadata"]["uid"]

    def remove(self, manifest: Manifest, version: int = 0) -> None:
        """Forget an object for good, as of a version, if that is newer than the object's own.

        A child whose labels are taken off is as good as gone, and comes back with them, newer than it went.
        """
        kind, uid = manifest["kind"], manifest["metadata"]["uid"]
        known = self.same(manifest) or manifest
        self._objects[kind].pop(uid, None)
        self._gone[uid] = math.inf if kind in CUSTOM_KINDS else max(version, *map(version_of, (known, manifest)))
        if len(self._gone) > REMEMBERED_DELETIONS:
            self._gone.popitem(last=False)
        self._forget_child(known)
        self._forget_user(known)
        key = key_of(known)
        if kind in CUSTOM_KINDS and key and self._custom.get(key) == uid:
            del self._custom[key]

    def forget_children(self, owner: str, kind: str) -> None:
        """Forget children that are not watched, without taking them for gone: they will be written anew."""
        for manifest in list(self.children(owner, kind)):
            uid = manifest["metadata"]["uid"]
            del self._objects[kind][uid]
            self._forget_child(manifest)

    def _forget_child(self, manifest: Manifest) -> None:
        """Forget whose child an object is, as it was seen last."""
        owner, key = manifest["metadata"].get("labels", {}).get(Label.UID), owner_of(manifest)
        if owner not in self._children:
            return
        self._children[owner].discard((manifest["kind"], manifest["metadata"]["uid"]))
        if self._children[owner]:
            return
        del self._children[owner]
        if key in self._owners:
            self._owners[key].discard(owner)
            if not self._owners[key]:
                del self._owners[key]

    def _forget_user(self, manifest: Manifest) -> None:
        """Forget which trainings' weights an object names, as it was seen last."""
        for name in trainings_of(manifest):
            self._users[name].discard((manifest["kind"], manifest["metadata"]["uid"]))
            if not self._users[name]:
                del self._users[name]

    def replace_children(self, owner: str, kind: str, listing: Listing) -> None:
        """Set the children of a kind to what a list has shown."""
        self._replace(self.children(owner, kind), listing)

    def remove_missing(self, kind: str, namespace: str, listing: Listing) -> list[Manifest]:
        """Forget what a list of a namespace, or of all, lacks, unless it is newer; return it."""
        listed = {manifest["metadata"]["uid"] for manifest in listing.items}
        gone = [
            manifest
            for manifest in self.all(kind)
            if manifest["metadata"]["uid"] not in listed
            and version_of(manifest) <= listing.version
            and namespace in ("", manifest["metadata"]["namespace"])
        ]
        for manifest in gone:
            self.remove(manifest, listing.version)
        return gone

    def is_behind(self, manifest: Manifest) -> bool:
        """Whether a newer state of an object than is known is there, of which its metadata will do."""
        return self._is_newer(manifest, self.same(manifest))

    def _is_newer(self, manifest: Manifest, known: Manifest | None) -> bool:
        """Whether a state of an object is newer than the one that is known, or than its deletion."""
        return version_of(manifest) > (version_of(known) if known else self._gone.get(manifest["metadata"]["uid"], -1))

    def replace_all(self, kind: str, listing: Listing) -> None:
        """Set all objects of a kind that has no owners."""
        self._replace(self.all(kind), listing)

    def _replace(self, known: Iterable[Manifest], listing: Listing) -> None:
        """What a list lacks is gone, unless it is newer: the watch may have shown it while the answer was under way."""
        listed = {manifest["metadata"]["uid"] for manifest in listing.items}
        for manifest in list(known):
            if manifest["metadata"]["uid"] not in listed and version_of(manifest) <= listing.version:
                self.remove(manifest, listing.version)
        for manifest in listing.items:
            self.put(manifest)

    def same(self, manifest: Manifest) -> Manifest | None:
        """Return an object as it was seen last."""
        return self._get(manifest["kind"], manifest["metadata"]["uid"])

    def _get(self, kind: str, uid: str) -> Manifest | None:
        kept = self._objects[kind].get(uid)
        return None if kept is None else _read(kept)

    def custom(self, key: Key) -> Manifest | None:
        """Return a custom resource."""
        uid = self._custom.get(key)
        return self._get(key.kind, uid) if uid else None

    def customs(self) -> Iterator[tuple[Key, Manifest]]:
        """Return all custom resources."""
        for key, uid in list(self._custom.items()):
            if manifest := self._get(key.kind, uid):
                yield key, manifest

    def users(self, named: Key) -> Iterator[Key]:
        """Return the objects that name a training's weights."""
        for kind, uid in list(self._users.get(named, ())):
            if manifest := self._get(kind, uid):
                yield Key(kind, manifest["metadata"]["namespace"], manifest["metadata"]["name"])

    def children(self, owner: str, kind: str | None = None) -> Iterator[Manifest]:
        """Return the objects that carry an owner's uid, of one kind or all."""
        for child_kind, uid in list(self._children.get(owner, ())):
            if kind in (None, child_kind) and (manifest := self._get(child_kind, uid)):
                yield manifest

    def children_of_others(self, key: Key, owner: str) -> Iterator[Manifest]:
        """Return the children of objects that had an object's name before it: all but those of `owner`."""
        for other in self._owners.get(key, set()) - {owner}:
            yield from self.children(other)

    def all(self, kind: str) -> Iterator[Manifest]:
        """Return all objects of a kind."""
        yield from map(_read, list(self._objects[kind].values()))

    def count(self, kind: str) -> int:
        """Return the number of objects of a kind."""
        return len(self._objects[kind])


def _text(manifest: Manifest) -> bytes:
    try:
        return to_json(manifest)
    except ValueError:  # nested more deeply than this writer goes, or with half a character
        return json.dumps(manifest, separators=(",", ":")).encode()


def _read(kept: Manifest | bytes) -> Manifest:
    manifest: Manifest = read_json(kept) if isinstance(kept, bytes) else kept
    return manifest


def version_of(manifest: Manifest) -> int:
    """Return the resource version of an object or a list.

    Kubernetes has compared it as a number since 1.35, and made it as one always.
    """
    text = str(manifest["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0
