"""The only Kubernetes I/O: reads, server-side apply, create-only, delete by uid, status. It decides nothing."""

import base64
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import client, config

from arctic_api import API_VERSION, ablation, evaluation, inference, training
from arctic_api.world import Label
from arctic_operator.cache import CUSTOM_KINDS, Listing, read_json, version_of
from arctic_operator.cache import Manifest as Manifest
from arctic_operator.clock import ClusterClock
from arctic_operator.observed import HISTORY, LEADER_WORKER_SET, STATEFUL_SET, Identity
from arctic_operator.plan.actions import Adopt, Delete, Mark
from arctic_operator.plan.words import NO_KUEUE

FIELD_MANAGER = "arctic-operator"
REQUEST_SECONDS = 15.0
APPLY = "application/apply-patch+yaml; charset=utf-8"
"""With the charset, the client sends our text as it is instead of writing JSON, which this content is not."""
MERGE = "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
METADATA_OF_ALL = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
UNREACHABLE = (aiohttp.ClientError, TimeoutError, OSError)
PAGE = 100
"""Objects of one answer to a list of all: while one is read, no other thread runs, and so no Lease is renewed."""
IDENTITY = ("namespace", "name", "uid", "resourceVersion", "labels")
"""Metadata that says what an object is, whose, and how new; who wrote which field is many times as much."""


class Resource(NamedTuple):
    """Where the API server keeps a kind."""

    api_version: str
    plural: str


RESOURCES = {
    training.KIND: Resource(API_VERSION, training.PLURAL),
    inference.KIND: Resource(API_VERSION, inference.PLURAL),
    ablation.KIND: Resource(API_VERSION, ablation.PLURAL),
    evaluation.KIND: Resource(API_VERSION, evaluation.PLURAL),
    "Job": Resource("batch/v1", "jobs"),
    STATEFUL_SET: Resource("apps/v1", "statefulsets"),
    LEADER_WORKER_SET: Resource("leaderworkerset.x-k8s.io/v1", "leaderworkersets"),
    "Deployment": Resource("apps/v1", "deployments"),
    "ControllerRevision": Resource("apps/v1", "controllerrevisions"),
    "Pod": Resource("v1", "pods"),
    "Service": Resource("v1", "services"),
    "ConfigMap": Resource("v1", "configmaps"),
    "Secret": Resource("v1", "secrets"),
    "NetworkPolicy": Resource("networking.k8s.io/v1", "networkpolicies"),
    "PodDisruptionBudget": Resource("policy/v1", "poddisruptionbudgets"),
    "Workload": Resource("kueue.x-k8s.io/v1beta1", "workloads"),
    "Node": Resource("v1", "nodes"),
    "Lease": Resource("coordination.k8s.io/v1", "leases"),
    "Event": Resource("events.k8s.io/v1", "events"),
}
CHILD_KINDS = (
    *("Job", "StatefulSet", "Deployment", "ControllerRevision", "Pod"),
    *("Service", "NetworkPolicy", "PodDisruptionBudget"),
)
"""Children that are always watched. Secrets and ConfigMaps are written by name and never listed."""


CREATED = frozenset({"Service", "NetworkPolicy", "PodDisruptionBudget", "Secret"})
"""Kinds of applied children that come by the object: to create one costs the API server a third of an apply.

ConfigMaps are not among them: an operator may not read them, and so not see whose a taken name is.
"""


def selector_of(kind: str) -> str:
    """Return which objects of a kind are watched: a StatefulSet's records of itself have our labels too."""
    if kind in (*CUSTOM_KINDS, "Node"):
        return ""
    records = f",{Label.ROLE}={HISTORY}" if kind == "ControllerRevision" else ""
    return f"{Label.MANAGED}=true{records}"


NAMESPACE_ENDS = "NamespaceTerminating"
"""Reason of a refusal that nobody needs to hear of: all objects of the namespace are about to go."""

WEBHOOK_AWAY = "failed calling webhook"
"""In the sentence of a refusal that stays until somebody sees to the webhook, though its code is a server's fault."""

POD_REFUSED, POD_MADE = "FailedCreate", "SuccessfulCreate"
"""Reasons of the events in which a controller tells of an object's pods."""


class ApiError(Exception):
    """The API server's refusal."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        """Hold the HTTP code, the API's reason in CamelCase, and its sentence."""
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message

    @property
    def kind_unknown(self) -> bool:
        """Whether nothing is served at that path: of an object or namespace that is missing the API says so itself."""
        return self.code == 404 and not self.reason

    @property
    def gone(self) -> bool:
        """Whether there is no such object, by the API server's own word: any proxy may answer with 404."""
        return self.code == 404 and not self.kind_unknown


class OwnedByAnotherError(Exception):
    """An object of the wanted name is there and belongs to someone else."""


class NotServedError(Exception):
    """The API server does not know the kind of an object that is to be made."""


NO_LEADER_WORKER_SETS = (
    "the cluster serves no LeaderWorkerSets (leaderworkerset.x-k8s.io/v1), of which inference groups are to be made: "
    "install LeaderWorkerSet, or set inference.groups to StatefulSet in the chart's values"
)


def yaml_text(body: Mapping[str, Any]) -> str:
    """Return JSON that is YAML too: what people's programs say may hold characters that JSON escapes as two surrogates.

    The API server reads an apply as YAML, which has one escape for such a character and none for half of it.
    """
    return re.sub(
        r"\\(?:u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})|u(d[89a-f][0-9a-f]{2})|.)", _yaml_escape, json.dumps(body)
    )


def _yaml_escape(escape: re.Match[str]) -> str:
    high, low, half = escape.groups()
    if high:
        return f"\\U{0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00:08x}"
    return "\\ufffd" if half else escape[0]


async def connect() -> client.ApiClient:
    """Return a client from the pod's service account, or, outside a cluster, from the kubeconfig."""
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        await config.load_kube_config(client_configuration=configuration)
    return client_of(configuration)


def client_of(configuration: client.Configuration) -> client.ApiClient:
    """Return a client that asks its environment for a proxy once: by itself it does so in a thread, for each request.

    It would look for a netrc file as often, which says nothing about API servers.
    """
    configuration.proxy = configuration.proxy or _proxy_of(configuration.host)
    configuration.client_session_kwargs = {"trust_env": False}
    return client.ApiClient(configuration)


def _proxy_of(server: str) -> str | None:
    address = urlsplit(server)
    if proxy_bypass(address.hostname or ""):
        return None
    return getproxies().get(address.scheme)


class Cluster:
    """Calls of the API server, each with a deadline."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api
        self.clock = ClusterClock()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
        accept: str = "application/json",
    ) -> Manifest:
        """Call the API server; ApiError if it refuses or can't be reached (code 0)."""
        try:
            response = await self._call(method, path, body=body, query=query, content=content, accept=accept)
            text = await response.read()
        except UNREACHABLE as error:
            raise ApiError(0, "Unreachable", f"the API server can't be reached: {error!r}") from error
        self.clock.hear(response.headers.get("Date"))
        if response.status >= 400:
            raise _error(response.status, text)
        return _answer(text) if text else {}

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
        accept: str = "application/json",
        within: float | aiohttp.ClientTimeout = REQUEST_SECONDS,
    ) -> aiohttp.ClientResponse:
        # Without the body, which the client would copy: it is JSON already.
        _, url, headers, *_ = await self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": accept, "Content-Type": content},
            auth_settings=["BearerToken"],
        )
        sent = yaml_text(body) if body and content == APPLY else body
        answer = await self._api.call_api(method, url, headers, sent, _request_timeout=within)
        response: aiohttp.ClientResponse = answer.response
        return response

    async def serves(self, *kinds: str) -> bool:
        """Whether the definitions of custom kinds are there and established."""
        for api_version, plural in map(RESOURCES.__getitem__, kinds):
            try:
                found = await self.request("GET", f"/apis/{api_version}")
            except ApiError as error:
                if error.code == 404:
                    return False
                raise
            if plural not in {resource["name"] for resource in found["resources"]}:
                return False
        return True

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """Return an object, None if there is none."""
        try:
            return await self.request("GET", path_of(kind, namespace, name))
        except ApiError as error:
            if error.gone:
                return None
            raise

    async def list_children(self, kind: str, namespace: str, owner: str) -> Listing:
        """Return the objects that carry an owner's uid, as the API server has them now; none of an unknown kind."""
        query = {"labelSelector": ",".join(filter(None, (selector_of(kind), f"{Label.UID}={owner}")))}
        try:
            return _listing(kind, await self.request("GET", path_of(kind, namespace), query=query))
        except ApiError as error:
            if not error.kind_unknown:
                raise
            # Older than anything: what was seen of them is not taken for gone by an API server that only starts.
            return Listing([], 0)

    async def list_present(self, kind: str, namespace: str) -> Listing:
        """Return what there is of a watched kind in a namespace or in all (``): of its metadata, its identity."""
        items: list[Manifest] = []
        version = 0
        async for page in self._pages(kind, namespace, METADATA_OF_ALL):
            items += map(_identified, page.items)
            version = page.version
        return Listing(items, version)

    async def list_watched(self, kind: str, namespace: str) -> AsyncIterator[Listing]:
        """Yield what there is of a watched kind, whole, in a namespace or in all (``), page by page."""
        async for page in self._pages(kind, namespace, "application/json"):
            yield Listing(_named(kind, page.items), page.version)

    async def _pages(self, kind: str, namespace: str, accept: str) -> AsyncIterator[Listing]:
        query = {"labelSelector": selector_of(kind), "limit": str(PAGE)}
        while True:
            answer = await self.request("GET", path_of(kind, namespace), query=query, accept=accept)
            # All pages show the moment of the first one; of no objects, metadata alone are null.
            yield Listing(answer["items"] or [], version_of(answer))
            following = answer["metadata"].get("continue")
            if not following:
                return
            query["continue"] = following

    async def follow(
        self, kind: str, namespace: str, version: int, seconds: int
    ) -> AsyncGenerator[tuple[int, str, Manifest | None], None]:
        """Yield what happens to a watched kind after a version, for some seconds; ApiError if it can't be told.

        Each time the version that is known then, the kind of event and the object: None where only the version is told.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": str(version),
            "labelSelector": selector_of(kind),
            "timeoutSeconds": str(seconds),
        }
        within = aiohttp.ClientTimeout(total=seconds + REQUEST_SECONDS)
        try:
            response = await self._call("GET", path_of(kind, namespace), query=query, within=within)
            async with response, aclosing(_lines(response.content)) as lines:
                if response.status >= 400:
                    raise _error(response.status, await response.read())
                async for line in lines:
                    event, manifest = _event(line)
                    if event == "ERROR":
                        raise _refusal(manifest.get("code") or 500, manifest)
                    yield version_of(manifest), event, None if event == "BOOKMARK" else manifest
        except UNREACHABLE as error:
            raise ApiError(0, "Unreachable", f"the watch has ended: {error!r}") from error

    async def list_nodes(self) -> Listing:
        """Return all nodes."""
        return _listing("Node", await self.request("GET", path_of("Node", "")))

    async def refusal(self, namespace: str, uid: str) -> str:
        """Return why a controller can't make pods for an object; empty if it has made one since, or said nothing.

        It says so in events alone. In the core API they can be selected by the object.
        """
        query = {"fieldSelector": f"involvedObject.uid={uid}"}
        answer = await self.request("GET", f"/api/v1/namespaces/{namespace}/events", query=query)
        told = [event for event in answer["items"] if event.get("reason") in (POD_REFUSED, POD_MADE)]
        newest: Manifest = max(told, key=lambda event: (_said_at(event), event["reason"] == POD_MADE), default={})
        return str(newest.get("message") or "") if newest.get("reason") == POD_REFUSED else ""

    async def refused(self, namespace: str) -> frozenset[str]:
        """Return the uids of the objects of a namespace for which a controller could not make a pod, lately."""
        query = {"fieldSelector": f"reason={POD_REFUSED}"}
        answer = await self.request("GET", f"/api/v1/namespaces/{namespace}/events", query=query)
        return frozenset(event["involvedObject"].get("uid", "") for event in answer["items"])

    async def admission(self, namespace: str, uid: str) -> str:
        """Return why Kueue has not admitted a Job; empty while it says nothing."""
        query = {"labelSelector": f"kueue.x-k8s.io/job-uid={uid}"}
        try:
            workloads = (await self.request("GET", path_of("Workload", namespace), query=query))["items"]
        except ApiError as error:
            if error.kind_unknown:
                return NO_KUEUE
            raise
        conditions = [each for workload in workloads for each in workload.get("status", {}).get("conditions", ())]
        told = {each["type"]: each.get("message", "") for each in conditions if each["status"] == "False"}
        return str(told.get("QuotaReserved") or told.get("Admitted") or "")

    async def apply(self, manifest: Manifest, owner: str, known: Manifest | None) -> Manifest:
        """Apply a child, unless it already is as it should be; OwnedByAnotherError if it is someone else's.

        One that is not known is created where that can be: if the name is taken then, it is looked at whose it is.
        """
        kind, metadata = manifest["kind"], manifest["metadata"]
        if known is None and kind in CREATED:
            created = await self.create(manifest)
            if created is not None:
                return created
            known = await self.get(kind, metadata["namespace"], metadata["name"])
            if known is None:
                raise ApiError(409, "Conflict", f"{kind} {metadata['name']} was there and is gone again")
        if known is None:
            return await self.apply_own(manifest)
        if not _owned(known, owner):
            raise OwnedByAnotherError(
                f"{kind} {metadata['name']} exists and belongs to something else: delete it, or choose another name"
            )
        if contains(known, manifest):
            return known
        if kind in CREATED:
            await self._take_for_applied(kind, metadata)
        return await self.apply_own(manifest | {"metadata": metadata | {"uid": known["metadata"]["uid"]}})

    async def _take_for_applied(self, kind: str, metadata: Manifest) -> None:
        """Let what was created count as applied: else an apply keeps what this operator has written and wants no more.

        It is what client-go's `csaupgrade` does.
        """
        found = await self.get(kind, metadata["namespace"], metadata["name"])
        fields = found["metadata"].get("managedFields", []) if found else []
        if found is None or any(each["manager"] == FIELD_MANAGER and each["operation"] == "Apply" for each in fields):
            return
        applied = [each | {"operation": "Apply"} if each["manager"] == FIELD_MANAGER else each for each in fields]
        if applied != fields:
            version = {name: found["metadata"][name] for name in ("uid", "resourceVersion")}
            path = path_of(kind, metadata["namespace"], metadata["name"])
            await self.request("PATCH", path, body={"metadata": version | {"managedFields": applied}}, content=MERGE)

    async def apply_own(
        self, manifest: Manifest, subresource: str = "", *, accept: str = "application/json"
    ) -> Manifest:
        """Apply an object that nobody else writes."""
        metadata = manifest["metadata"]
        path = path_of(manifest["kind"], metadata["namespace"], metadata["name"]) + subresource
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self.request("PATCH", path, body=manifest, query=query, content=APPLY, accept=accept)

    async def create(self, manifest: Manifest) -> Manifest | None:
        """Create an object; None if one of that name is there already, NotServedError if there is no such kind.

        What the API server fills in is returned of the metadata alone.
        """
        path, query = path_of(manifest["kind"], manifest["metadata"]["namespace"]), {"fieldManager": FIELD_MANAGER}
        try:
            answer = await self.request("POST", path, body=manifest, query=query, accept=METADATA_ONLY)
            return manifest | {"metadata": answer["metadata"]}
        except ApiError as error:
            if error.code == 409 and error.reason == "AlreadyExists":
                return None
            if error.kind_unknown and manifest["kind"] == LEADER_WORKER_SET:
                raise NotServedError(NO_LEADER_WORKER_SETS) from error
            raise

    async def replace(self, manifest: Manifest) -> Manifest:
        """Replace an object if it still has the resource version that the manifest names."""
        metadata = manifest["metadata"]
        path = path_of(manifest["kind"], metadata["namespace"], metadata["name"])
        return await self.request("PUT", path, body=manifest, query={"fieldManager": FIELD_MANAGER})

    async def merge(self, manifest: Manifest, dropped: Mapping[str, Any]) -> Manifest:
        """Set an object's data, and no others of the keys in `dropped`, if it still has the manifest's version."""
        metadata = manifest["metadata"]
        path = path_of(manifest["kind"], metadata["namespace"], metadata["name"])
        data = dict.fromkeys(dropped) | manifest["data"]
        return await self.request("PATCH", path, body=manifest | {"data": data}, content=MERGE)

    async def mark(self, mark: Mark) -> Manifest | None:
        """Set what a mark says of an object if that still has its uid; None if it is gone."""
        metadata = {"uid": mark.uid, "labels": dict(mark.labels), "annotations": dict(mark.annotations)}
        spec = {} if mark.replicas is None else {"spec": {"replicas": mark.replicas}}
        path = path_of(mark.kind, mark.namespace, mark.name)
        try:
            return await self.request("PATCH", path, body={"metadata": metadata} | spec, content=MERGE)
        except ApiError as error:
            if error.code in (404, 409):
                return None
            raise

    async def adopt(self, adopt: Adopt) -> None:
        """Make an object a child of another owner than it had; nothing happens if it is gone."""
        body = {"metadata": {"labels": dict(adopt.labels), "ownerReferences": [dict(adopt.owner)]}}
        try:
            await self.request("PATCH", path_of(adopt.kind, adopt.namespace, adopt.name), body=body, content=MERGE)
        except ApiError as error:
            if error.code != 404:
                raise

    async def delete(self, delete: Delete) -> None:
        """Delete an object if it still has that uid; nothing happens if it is gone."""
        options: Manifest = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground" if delete.after_pods else "Background",
        }
        if delete.grace_seconds is not None:
            options["gracePeriodSeconds"] = delete.grace_seconds
        if delete.uid:
            options["preconditions"] = {"uid": delete.uid}
        try:
            await self.request("DELETE", path_of(delete.kind, delete.namespace, delete.name), body=options)
        except ApiError as error:
            if error.code not in (404, 409):
                raise

    async def apply_status(self, identity: Identity, status: Mapping[str, Any]) -> Manifest:
        """Write the whole status of a custom resource; return its metadata."""
        metadata = {"name": identity.name, "namespace": identity.namespace, "uid": identity.uid}
        manifest = {"apiVersion": API_VERSION, "kind": identity.kind, "metadata": metadata, "status": dict(status)}
        answer = await self.apply_own(manifest, "/status", accept=METADATA_ONLY)
        written: Manifest = answer["metadata"]
        return written


def contains(known: Any, wanted: Any) -> bool:
    """Whether an object has all that is wanted of it; what else the API server has filled in does not matter."""
    if known == wanted:  # which most parts are, and this says at once
        return True
    if isinstance(wanted, Mapping):
        return isinstance(known, Mapping) and all(
            (key in known and contains(known[key], value)) or (key not in known and value in ({}, [], None))
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(known, list)
            and len(known) == len(wanted)
            and all(contains(a, b) for a, b in zip(known, wanted, strict=True))
        )
    return False


def secret_data(manifest: Manifest) -> dict[str, bytes]:
    """Return the content of a Secret."""
    return {name: base64.b64decode(value) for name, value in (manifest.get("data") or {}).items()}


def micro_time(moment: datetime) -> str:
    """Return a time with microseconds, as Leases and Events have it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _owned(manifest: Manifest, owner: str) -> bool:
    return any(reference["uid"] == owner for reference in manifest["metadata"].get("ownerReferences") or ())


def path_of(kind: str, namespace: str, name: str = "") -> str:
    """Return where the API server keeps an object, or all of a namespace, or all."""
    resource = RESOURCES[kind]
    root = "/api/v1" if resource.api_version == "v1" else f"/apis/{resource.api_version}"
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{place}/{resource.plural}" + (f"/{name}" if name else "")


def _said_at(event: Manifest) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"])


def _listing(kind: str, answer: Manifest) -> Listing:
    return Listing(_named(kind, answer["items"]), version_of(answer))


def _identified(item: Manifest) -> Manifest:
    metadata = item["metadata"]
    return {"metadata": {name: metadata[name] for name in IDENTITY if name in metadata}}


def _named(kind: str, items: list[Manifest]) -> list[Manifest]:
    """The API server names the kind of a list's items only in the list itself."""
    return [{"apiVersion": RESOURCES[kind].api_version, "kind": kind} | item for item in items]


async def _lines(content: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    """Yield lines, however long: a reader's own `readline` has a limit."""
    begun: list[bytes] = []
    async for chunk in content.iter_any():
        first, *others = chunk.split(b"\n")
        begun.append(first)
        for other in others:
            if line := b"".join(begun):
                yield line
            begun = [other]


def _answer(text: bytes) -> Manifest:
    """Return what the API server has answered; ApiError (code 0) for what only a proxy before it can have."""
    with suppress(ValueError):
        answer = read_json(text)
        if isinstance(answer, dict):
            return answer
    raise _no_api_server(text)


def _event(text: bytes) -> tuple[str, Manifest]:
    """Return the kind of an event that a watch has told, and its object; ApiError (code 0) as of an answer."""
    told = _answer(text)
    if not {"type", "object"} <= told.keys():
        raise _no_api_server(text)
    return told["type"], told["object"]


def _no_api_server(text: bytes) -> ApiError:
    return ApiError(0, "Unreachable", f"what answers is no API server: {_words(text)}")


def _error(code: int, text: bytes) -> ApiError:
    with suppress(ValueError):
        status = json.loads(text)
        if isinstance(status, dict) and status.get("kind") == "Status":
            return _refusal(code, status)
    return ApiError(code, "", _words(text))


def _words(text: bytes) -> str:
    return text[:500].decode(errors="replace")


def _refusal(code: int, status: Manifest) -> ApiError:
    causes = (status.get("details") or {}).get("causes") or ()
    message = status.get("message") or f"HTTP {code}"
    if any(cause.get("field") == "metadata.uid" for cause in causes):
        # What is a conflict in an update or a deletion is invalid in a patch: another object has the name now.
        return ApiError(409, "Conflict", message)
    ends = any(cause.get("reason") == NAMESPACE_ENDS for cause in causes)
    return ApiError(code, NAMESPACE_ENDS if ends else status.get("reason") or "", message)
