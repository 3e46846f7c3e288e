"""The operator's own metrics. Labels have few values, none of them chosen by users: `inventory` has the objects'."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

RECONCILE = Counter("arctic_operator_reconcile", "Reconciliations.", ["kind", "result"], registry=REGISTRY)
RECONCILE_SECONDS = Histogram(
    "arctic_operator_reconcile_seconds",
    "Time that one reconciliation takes.",
    ["kind"],
    registry=REGISTRY,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
QUEUE_DEPTH = Gauge("arctic_operator_workqueue_depth", "Objects that are due.", registry=REGISTRY)
QUEUE_RETRIES = Counter("arctic_operator_workqueue_retries", "Objects put back after an error.", registry=REGISTRY)
STATUS_WRITES = Counter("arctic_operator_status_writes", "Status writes.", ["kind"], registry=REGISTRY)
CHILD_WRITES = Counter("arctic_operator_child_writes", "Writes of children.", ["action"], registry=REGISTRY)
WATCH_EVENTS = Counter(
    "arctic_operator_watch_events", "Events that the watches have shown.", ["kind"], registry=REGISTRY
)
OBJECTS = Gauge("arctic_operator_objects", "Custom resources.", ["kind"], registry=REGISTRY)
CERTIFICATE_EXPIRY = Gauge(
    "arctic_operator_certificate_expiry_timestamp_seconds",
    "When a certificate of the operator's ends: that of its authority, and its own as a client of workers.",
    ["certificate"],
    registry=REGISTRY,
)
LEADER = Gauge("arctic_operator_leader", "1 while this operator holds the Lease.", registry=REGISTRY)
HEARTBEAT_AGE = Gauge(
    "arctic_operator_heartbeat_unseen_seconds",
    "Age of the oldest heartbeat that was written and that the watch has not shown.",
    registry=REGISTRY,
)
SCALINGS = Counter(
    "arctic_operator_scalings",
    "Changes of the number of a service's groups by autoscaling: up, down, to_zero, from_zero.",
    ["direction"],
    registry=REGISTRY,
)
for _direction in ("up", "down", "to_zero", "from_zero"):
    SCALINGS.labels(_direction)
CANARIES = Counter(
    "arctic_operator_canaries", "Canaries that an analysis has decided on.", ["verdict"], registry=REGISTRY
)
for _verdict in ("promoted", "rolled_back"):
    CANARIES.labels(_verdict)
RECOVERY_SECONDS = Histogram(
    "arctic_operator_recovery_seconds",
    "Time from a fault until a world trains or serves again, by part: noticing, waiting, scheduling, loading.",
    ["kind", "fault", "part"],
    registry=REGISTRY,
    buckets=(0.5, 1, 2.5, 5, 10, 20, 30, 45, 60, 90, 120, 300, 600),
)
