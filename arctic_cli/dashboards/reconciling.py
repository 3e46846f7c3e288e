"""The operator: whether it leads, keeps up, and how long what broke was broken."""

from arctic_cli.dashboards.grafana import Dashboard, Panel, Query

_RATE = "[$__rate_interval]"


def _quantile(share: float) -> Query:
    seconds = f"sum by (le) (rate(arctic_operator_reconcile_seconds_bucket{_RATE}))"
    return Query(f"histogram_quantile({share}, {seconds})", f"p{share * 100:.0f}")


RECONCILING = Dashboard(
    "arctic-operator",
    "Arctic / Operator",
    "Reconciliations, watches and certificates of the operator, and recoveries from faults.",
    (
        (
            Panel(
                "Reconciliations",
                (
                    Query(
                        f"sum by (kind, result) (rate(arctic_operator_reconcile_total{_RATE}))", "{{kind}}: {{result}}"
                    ),
                ),
                unit="ops",
                stacked=True,
            ),
            Panel("Time of one", (_quantile(0.5), _quantile(0.99)), unit="s"),
            Panel(
                "Queue",
                (
                    Query(
                        "sum(arctic_operator_workqueue_depth and on (namespace, pod) arctic_operator_leader == 1)",
                        "objects that are due",
                    ),
                    Query(f"sum(rate(arctic_operator_workqueue_retries_total{_RATE}))", "put back, a second"),
                    Query("sum by (kind) (arctic_operator_objects)", "objects: {{kind}}"),
                ),
            ),
        ),
        (
            Panel(
                "Writes",
                (
                    Query(f"sum by (action) (rate(arctic_operator_child_writes_total{_RATE}))", "children: {{action}}"),
                    Query(f"sum by (kind) (rate(arctic_operator_status_writes_total{_RATE}))", "status: {{kind}}"),
                ),
                unit="ops",
                stacked=True,
            ),
            Panel(
                "What the watches show",
                (Query(f"sum by (kind) (rate(arctic_operator_watch_events_total{_RATE}))", "{{kind}}"),),
                unit="ops",
                stacked=True,
            ),
        ),
        (
            Panel(
                "Leader and heartbeat",
                (
                    Query("arctic_operator_leader", "leads: {{pod}}"),
                    Query("arctic_operator_heartbeat_unseen_seconds", "seconds unseen: {{pod}}"),
                ),
                description="A heartbeat that is written and not seen: the watches show nothing.",
            ),
            Panel(
                "Processor time",
                (Query(f'rate(process_cpu_seconds_total{{pod=~".*-operator-.+"}}{_RATE})', "{{pod}}"),),
                unit="percentunit",
                description="Share of one core.",
            ),
            Panel(
                "Memory",
                (Query('process_resident_memory_bytes{pod=~".*-operator-.+"}', "{{pod}}"),),
                unit="bytes",
            ),
        ),
        (
            Panel(
                "Recoveries",
                (
                    Query(
                        "sum by (kind, part) (arctic_operator_recovery_seconds_sum)"
                        " / sum by (kind, part) (arctic_operator_recovery_seconds_count)",
                        "{{kind}}: {{part}}",
                    ),
                ),
                unit="s",
                description="Mean time from a fault until a world trained or served again, by part.",
                stacked=True,
            ),
            Panel(
                "Certificates",
                (
                    Query(
                        "max by (certificate) (arctic_operator_certificate_expiry_timestamp_seconds) - time()",
                        "{{certificate}}",
                    ),
                    Query(
                        "min(arctic_control_certificate_expiry_timestamp_seconds) - time()", "workers, the first to end"
                    ),
                ),
                unit="s",
                description="Time that is left: they are replaced when a third is.",
            ),
        ),
    ),
)
