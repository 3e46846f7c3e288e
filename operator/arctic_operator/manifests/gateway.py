"""Builders of what stands in front of an inference service: its stable address and the HAProxy behind it.

HAProxy finds the ready leaders by DNS and asks each for its own health: groups come and go without a change here.
What may change more often than a gateway should restart is in files that it reads anew (`gateway_lua`).
"""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from arctic_api.common import parse_duration
from arctic_api.inference import ArcticInferenceSpec
from arctic_api.world import Label, Ports, Routing
from arctic_operator.manifests.common import (
    CONTAINER_SECURITY,
    POD_SECURITY,
    Manifest,
    canary_name,
    child_metadata,
    gateway_name,
    keys_name,
    leader_selector,
    leaders_name,
    revision_of,
    secret_manifest,
)
from arctic_operator.manifests.gateway_lua import LUA, LUA_FILE
from arctic_operator.observed import Identity
from arctic_operator.settings import Settings

ROLE = "gateway"
CONFIG_FILE = "haproxy.cfg"
CONFIG_FOLDER = "/etc/arctic/gateway"
KEYS_FOLDER = "/etc/arctic/keys"
KEYS_FILE = "digests"
CANARY_FILE = "canary"
"""Holds the percentage of requests that go to the canary."""
HOLD_FILE = "hold"
"""Holds the number of requests that may wait in one pod while there is no leader."""
WAITING_PATH = "/waiting"
"""Where the gateway says, on its port for metrics, how many requests wait in it."""
REPLICAS = 2
CONFIG_HASH = "arctic.dev/config-hash"
HTTP_PORT = 8080
"""Port of the gateway's pods: above 1024, since they are not root; the Service maps the spec's port to it."""
ANY_VARIABLE = "ARCTIC_ANY"
"""Tells HAProxy to listen on all addresses: `::` on nodes with IPv6, empty on others, where it would fail."""
CONNECTIONS = 4096
"""Most open connections of one pod, whatever they are for."""
RESERVED = 64
"""As many of them are kept from the API: where it is full, probes still find the gateway well, which goes on."""
REFUSALS = 64
"""On the last of the API's connections requests are refused: others would wait in the kernel, and hear nothing."""
MAX_BODY_BYTES = 32 << 20
GRACE_SECONDS = 5
"""From being told to stop to closing the listener: what the cluster needs to stop sending connections here."""
MARGIN_SECONDS = 5
BEGIN_SECONDS = 5
"""What one that has just begun gets to find a leader before it is ready without any."""
MIN_SLOTS = 16
PREFLIGHT_SECONDS = 600
"""For so long a browser need not ask again whether a page may ask."""

_ERRORS = {
    400: ("invalid_request_error", "bad_request", "The request is not valid HTTP."),
    408: ("invalid_request_error", "request_timeout", "The request did not arrive in time: send it again."),
    413: ("invalid_request_error", "request_too_large", f"The request body is larger than {MAX_BODY_BYTES >> 20} MiB."),
    500: ("server_error", "internal_error", "The gateway failed: send the request again."),
    502: ("server_error", "bad_gateway", "The replica went away before it answered."),
    503: ("server_error", "overloaded", "All replicas are busy, or went away: try again in a few seconds."),
    504: ("server_error", "gateway_timeout", "The replica did not answer in time."),
}
_RETRY_AFTER_SECONDS = {502: 1, 503: 5, 429: 1}
_START_SECONDS = 10
"""Retry-After of a service that starts."""
_LENGTH_REQUIRED = ("invalid_request_error", "length_required", "Send the request with a Content-Length.")
_NO_KEY = (
    "invalid_request_error",
    "invalid_api_key",
    "The API key is missing or is not one of this service: send the header Authorization: Bearer KEY.",
)
_NO_ORIGIN = (
    "invalid_request_error",
    "origin_not_allowed",
    "Pages of this origin may not ask this service: add the origin to service.cors.",
)
_LATE = ("rate_limit_error", "starting", "This model is being started again, which takes longer: try again later.")
_HOLD_FULL = ("rate_limit_error", "queue_full", "Too many requests wait for this model to start: try again later.")
_UNREADY = ("server_error", "service_unavailable", "No replica of this model is ready: try again in a few seconds.")
_QUEUE_FULL = ("rate_limit_error", "queue_full", "Too many requests wait already: try again later.")


class GatewayShape(NamedTuple):
    """What of a service its gateway's configuration depends on."""

    leaders_host: str
    """DNS name that resolves to the ready leaders."""
    canary_host: str
    """DNS name that resolves to those of a canary."""
    leaders_port: int
    health_port: int
    """Port on which leaders answer `/readyz`, and on which the gateway itself serves `/metrics` and `/healthz`."""
    slots: int
    """Most leaders that can be known at once."""
    requests_per_leader: int
    """Requests that a leader is given at once; the others queue here."""
    drain_seconds: int
    """Time that running requests get once the gateway is told to stop."""
    locked: bool = False
    """Whether a request needs a key."""
    origins: tuple[str, ...] = ()
    """Those whose pages may ask, "*" for all; their browsers ask first, without a key, whether they may (CORS)."""
    hold_seconds: int = 0
    """Longest wait of a request while there is no leader; none waits if it is 0."""
    hold_requests: int = 0
    """Most requests that wait so."""


def leader_slots(most_groups: int) -> int:
    """Return a number of server slots with room for `most_groups`: powers of two, so that scaling rarely changes it."""
    return max(MIN_SLOTS, 1 << (most_groups - 1).bit_length())


def haproxy_config(shape: GatewayShape, connections: int = CONNECTIONS) -> str:
    """Return HAProxy's configuration (2.6 or newer) for so many open connections."""
    most_open = connections - RESERVED
    is_full = f"fe_conn(api) gt {most_open - REFUSALS}"
    errors = "\n    ".join(f"http-error {_answer(status, error)}" for status, error in _ERRORS.items())
    return f"""\
global
    # What is told of a request has this level, however it ended.
    log stdout format raw local0 info
    setenv ARCTIC_KEYS {KEYS_FOLDER}/{KEYS_FILE}
    setenv ARCTIC_CANARY {CONFIG_FOLDER}/{CANARY_FILE}
    setenv ARCTIC_HOLD {CONFIG_FOLDER}/{HOLD_FILE}
    setenv ARCTIC_HOLD_SECONDS {shape.hold_seconds}
    setenv ARCTIC_BEGIN_SECONDS {BEGIN_SECONDS}
    lua-load {CONFIG_FOLDER}/{LUA_FILE}
    # Fixed, since HAProxy otherwise sizes itself by the node's processors and its limit of open files. With a second
    # thread Debian's may never end after its grace, but spin (github.com/haproxy/haproxy/issues/2537); one passes on
    # some 40,000 pieces of streams a second, and what comes faster in larger pieces.
    maxconn {connections}
    nbthread 1
    # `wait-for-body` waits for so much. The pod's memory limit has room for two such buffers a connection.
    tune.bufsize 65536
    # While stopping it still accepts, and answers "Connection: close": no client is cut off in between two requests.
    grace {GRACE_SECONDS}s
    hard-stop-after {GRACE_SECONDS + shape.drain_seconds}s

defaults
    mode http
    log global
    option httplog
    option dontlog-normal
    # Load balancers look whether the port is open, and browsers connect ahead of time.
    option dontlognull
    # A new connection for each request to a leader: one that was kept could be closed just as a request is sent on it,
    # and a POST must not be sent twice.
    option http-server-close
    option http-no-delay
    option abortonclose
    # A leader whose node is gone without a word is given up after 25 s, whether it owed an answer or an acknowledgement
    # (`tcp-ut` below).
    option srvtcpka
    srvtcpka-idle 10s
    srvtcpka-intvl 5s
    srvtcpka-cnt 3
    # Only what was never sent is tried again, at another leader.
    retries 3
    retry-on conn-failure
    option redispatch 1
    timeout connect 2s
    timeout http-request 30s
    timeout http-keep-alive 60s
    timeout queue 60s
    # An answer that is not streamed is silent until it is complete.
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    {errors}

resolvers cluster
    parse-resolv-conf
    accepted_payload_size 8192
    resolve_retries 3
    timeout resolve 1s
    timeout retry 1s
    hold valid 1s
    hold obsolete 1s
    hold nx 5s
    # While DNS is away the leaders stay; their own health decides.
    hold other 5m
    hold refused 5m
    hold timeout 5m

frontend api
    bind "${{{ANY_VARIABLE}}}:{HTTP_PORT}" v4v6
    maxconn {most_open}
    monitor-uri /healthz
    monitor fail if {{ stopping }}
    # One that has just begun knows no leader yet: others of its kind do, and should be asked.
    monitor fail if {{ nbsrv(leaders) eq 0 }} {{ nbsrv(canary) eq 0 }} {{ lua.begins -m bool }}
    http-request return {_answer(411, _LENGTH_REQUIRED)} if {{ req.hdr(transfer-encoding) -m found }}
    http-request deny deny_status 413 if {{ req.hdr_val(content-length) gt {MAX_BODY_BYTES} }}
    # A leader gets a request once it is here, so that slow senders fill no queue: the whole of it up to
    # `tune.bufsize`, of a longer one that much. `option http-buffer-request` would wait before the size is looked at.
    http-request wait-for-body time 30s
{_preflight(shape)}{_lock(shape)}{_hold(shape)}\
    http-after-response set-header Connection close if {{ stopping }} or {{ {is_full} }}
    use_backend canary if {{ nbsrv(canary) gt 0 }} {{ lua.to_canary -m bool }}
    use_backend canary if {{ nbsrv(canary) gt 0 }} {{ nbsrv(leaders) eq 0 }}
    default_backend leaders
{_backend("leaders", "leader", shape.leaders_host, shape, is_full)}
{_backend("canary", "canary", shape.canary_host, shape, is_full)}
frontend observability
    bind "${{{ANY_VARIABLE}}}:{shape.health_port}" v4v6
    monitor-uri /healthz
    http-request use-service prometheus-exporter if {{ path /metrics }}
    http-request use-service lua.waiting if {{ path {WAITING_PATH} }}
    http-request deny deny_status 404
"""


def _backend(name: str, server: str, host: str, shape: GatewayShape, is_full: str) -> str:
    held = " !{ var(txn.held) -m found }" if shape.hold_seconds else ""
    most_waiting = max(shape.requests_per_leader, shape.hold_requests)
    return f"""
backend {name}
    # Here, not in the frontend, so that the backend's metrics count them.
    http-request return {_answer(503, _UNREADY)} if {{ nbsrv eq 0 }}
    # As many may wait as run: more would only wait until `timeout queue`. Where requests were held for a leader, they
    # are its queue now, and nobody is refused for that.
    http-request return {_answer(429, _QUEUE_FULL)} if {{ avg_queue ge {most_waiting} }}{held}
    # With many leaders the connections come to an end before the queue does.
    http-request return {_answer(429, _QUEUE_FULL)} if {{ {is_full} }}{held}
    balance leastconn
    option httpchk GET /readyz
    http-check expect status 200
    # Above `inter`, which is the time to connect: a leader that is busy for a moment answers late, and is well.
    timeout check 5s
    default-server check port {shape.health_port} inter 1s fall 2 rise 1 maxconn {shape.requests_per_leader} tcp-ut 25s
    server-template {server} 1-{shape.slots} {host}:{shape.leaders_port} \
resolvers cluster resolve-prefer ipv4 init-addr none
"""


def _preflight(shape: GatewayShape) -> str:
    """Return the rules that tell a browser, which has no key yet, whether a page may ask.

    No leader is asked: it might have to be woken, and who has no key wakes nobody and takes no place in a queue. The
    page's own request comes after that, with its key.
    """
    if not shape.origins:
        return ""
    asked = "{ method OPTIONS } { req.fhdr(origin) -m found } { req.fhdr(access-control-request-method) -m found }"
    all_may = "*" in shape.origins
    known = ["-m found"] if all_may else [f"-m str {_quoted(origin)}" for origin in shape.origins]
    rules = [
        *(f"acl may_ask req.fhdr(origin) {pattern}" for pattern in known),
        "http-request return status 200 content-type text/plain string OK"
        f" hdr Access-Control-Allow-Origin {'*' if all_may else '%[req.fhdr(origin)]'}"
        ' hdr Access-Control-Allow-Methods "GET, POST"'
        " hdr Access-Control-Allow-Headers %[req.fhdr(access-control-request-headers)]"
        f" hdr Access-Control-Max-Age {PREFLIGHT_SECONDS}"
        ' hdr Vary "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"'
        f" if {asked} may_ask",
        f"http-request return {_answer(403, _NO_ORIGIN)} if {asked}",
    ]
    return "".join(f"    {rule}\n" for rule in rules)


def _quoted(word: str) -> str:
    """Return a word as HAProxy reads it literally, whatever characters it has."""
    return "'" + word.replace("'", "'\\''") + "'"


def _lock(shape: GatewayShape) -> str:
    """Return the rules that refuse who has no key; `/health` is for load balancers, which have none.

    They come after the body, since who is refused while it still sends may find no answer but a broken connection.
    """
    if not shape.locked:
        return ""
    return f"""\
    http-request set-var(txn.key_digest) http_auth_bearer,sha2(256),hex,lower
    http-request return {_answer(401, _NO_KEY)} if !{{ lua.has_key -m bool }} !{{ path /health }}
"""


def _hold(shape: GatewayShape) -> str:
    """Return the rules that let requests wait for a service that is scaled to zero.

    They come after the key: who has none wakes nobody. `/health` says how it is now.
    """
    if not shape.hold_seconds:
        return ""
    return f"""\
    http-request lua.hold if {{ nbsrv(leaders) eq 0 }} {{ nbsrv(canary) eq 0 }} !{{ path /health }}
    http-request return {_answer(429, _HOLD_FULL, _START_SECONDS)} if {{ var(txn.unheld) -m str full }}
    http-request return {_answer(429, _LATE, _START_SECONDS)} if {{ var(txn.unheld) -m str late }}
"""


def _answer(status: int, error: tuple[str, str, str], retry_after: int | None = None) -> str:
    """Return the arguments of HAProxy's answers of its own: a body as the OpenAI API has it."""
    seconds = retry_after or _RETRY_AFTER_SECONDS.get(status)
    retry = f" hdr Retry-After {seconds}" if seconds else ""
    asks = " hdr WWW-Authenticate Bearer" if status == 401 else ""
    return f"status {status} content-type application/json string '{_json_error(*error)}'{retry}{asks}"


def _json_error(kind: str, code: str, message: str) -> str:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def service_url(identity: Identity, spec: ArcticInferenceSpec) -> str:
    """Return the stable address of a service."""
    return f"http://{identity.name}.{identity.namespace}.svc:{spec.service.port}"


def gateway_children(
    identity: Identity, spec: ArcticInferenceSpec, settings: Settings, digests: Sequence[str] = (), share: int = 0
) -> list[Manifest]:
    """Return all that stands in front of the groups of one ArcticInference.

    `digests` are those of accepted keys, `share` is the percentage of requests that a canary gets.

    It does not depend on which groups there are: with none ready, or none wanted, requests are answered with 503.
    """
    shape = _shape(identity, spec, settings)
    config = haproxy_config(shape)
    selector: dict[str, str] = {Label.UID.value: identity.uid, Label.ROLE.value: ROLE}
    name, ports = gateway_name(identity), Ports()
    pod = _pod(identity, shape, selector, spec, settings)
    keys = "".join(f"{digest}\n" for digest in digests)
    locked = spec.service.auth is not None
    key_secret = secret_manifest(child_metadata(identity, keys_name(identity), role=ROLE), {KEYS_FILE: keys.encode()})
    return [
        *([key_secret] if locked else []),
        _child("v1", "ConfigMap", identity, name)
        | {
            "data": {
                CONFIG_FILE: config,
                LUA_FILE: LUA,
                CANARY_FILE: f"{share}\n",
                HOLD_FILE: f"{held_at_once(spec)}\n",
            }
        },
        *(
            _child("v1", "Service", identity, service)
            | {
                "spec": {
                    "clusterIP": "None",
                    "selector": leader_selector(identity, routing),
                    "ports": [{"name": "http", "port": ports.http, "protocol": "TCP"}],
                }
            }
            for service, routing in ((leaders_name(identity), Routing.ON), (canary_name(identity), Routing.CANARY))
        ),
        _child("v1", "Service", identity, identity.name)
        | {
            "spec": {
                "selector": selector,
                "ports": [{"name": "http", "port": spec.service.port, "targetPort": "http", "protocol": "TCP"}],
            }
        },
        _child("policy/v1", "PodDisruptionBudget", identity, name)
        | {"spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector}}},
        _child("apps/v1", "Deployment", identity, name)
        | {
            "spec": {
                "replicas": REPLICAS,
                "selector": {"matchLabels": selector},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "template": {
                    "metadata": {
                        "labels": _child("v1", "Pod", identity, name)["metadata"]["labels"],
                        # Of the pod too: what is left out of an apply is no difference.
                        "annotations": {CONFIG_HASH: revision_of({"config": config, "lua": LUA, "pod": pod})},
                    },
                    "spec": pod,
                },
            }
        },
    ]


def held_at_once(spec: ArcticInferenceSpec) -> int:
    """Return how many requests may wait in one of the gateway's pods while there is no leader."""
    return 0 if spec.suspend else _hold_requests(spec)


def _hold_requests(spec: ArcticInferenceSpec) -> int:
    scaling = spec.autoscaling
    if scaling is None or scaling.scale_to_zero_after is None:
        return 0
    return math.ceil(scaling.hold.requests / REPLICAS)


def _shape(identity: Identity, spec: ArcticInferenceSpec, settings: Settings) -> GatewayShape:
    wanted = max(spec.replicas, spec.autoscaling.max if spec.autoscaling else 0)
    ports = Ports()
    to_zero = spec.autoscaling is not None and spec.autoscaling.scale_to_zero_after is not None
    hold = math.ceil(parse_duration(spec.autoscaling.hold.timeout)) if spec.autoscaling and to_zero else 0
    domain = f"{identity.namespace}.svc.{settings.cluster_domain}"
    return GatewayShape(
        leaders_host=f"{leaders_name(identity)}.{domain}",
        canary_host=f"{canary_name(identity)}.{domain}",
        leaders_port=ports.http,
        health_port=ports.metrics,
        slots=leader_slots(max(1, wanted + spec.rollout.max_surge)),
        # As many again as can run: a leader always has a next request, and its own queue shows that it is full.
        requests_per_leader=2 * spec.batching.max_sequences,
        # A gateway that is replaced lets those wait on that wait in it.
        drain_seconds=math.ceil(parse_duration(spec.rollout.drain_timeout)) + hold,
        locked=spec.service.auth is not None,
        origins=tuple(spec.service.cors or ()),
        hold_seconds=hold,
        hold_requests=_hold_requests(spec),
    )


def _child(api_version: str, kind: str, identity: Identity, name: str) -> Manifest:
    return {"apiVersion": api_version, "kind": kind, "metadata": child_metadata(identity, name, role=ROLE)}


def _pod(
    identity: Identity, shape: GatewayShape, selector: dict[str, str], spec: ArcticInferenceSpec, settings: Settings
) -> Manifest:
    spread = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": selector}}
    preferred = [{"weight": 100, "podAffinityTerm": spread}]
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS + shape.drain_seconds + MARGIN_SECONDS,
        "securityContext": POD_SECURITY,
        "imagePullSecrets": [{"name": secret} for secret in settings.image_pull_secrets],
        "nodeSelector": settings.gateway_node_selector,
        "tolerations": [toleration.wire() for toleration in settings.gateway_tolerations],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}},
        **({"priorityClassName": spec.priority_class_name} if spec.priority_class_name else {}),
        "containers": [_container(shape, settings)],
        "volumes": [
            {"name": "config", "configMap": {"name": gateway_name(identity)}},
            *([{"name": "keys", "secret": {"secretName": keys_name(identity)}}] if shape.locked else []),
        ],
    }


def _container(shape: GatewayShape, settings: Settings) -> Manifest:
    return {
        "name": "haproxy",
        "image": settings.gateway_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": gateway_command(f"{CONFIG_FOLDER}/{CONFIG_FILE}"),
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": shape.health_port, "protocol": "TCP"},
        ],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 2},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "metrics"}, "periodSeconds": 10},
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "768Mi"}},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            *([{"name": "keys", "mountPath": KEYS_FOLDER, "readOnly": True}] if shape.locked else []),
        ],
    }


def gateway_command(config_path: str) -> list[str]:
    """Return the container's command: HAProxy takes SIGTERM for "stop at once", where the kubelet means "finish first".

    The first `wait` ends when the signal comes, the second when HAProxy does: a runtime may send the signal again.
    """
    look = f"test ! -e /proc/net/if_inet6 || export {ANY_VARIABLE}=::"
    stop = "trap '' TERM USR1; kill -USR1 $!"
    run = f'haproxy -db -f "$0" & trap "{stop}" TERM USR1; wait $! || wait $!'
    return ["/bin/sh", "-c", f"{look}; {run}", config_path]
