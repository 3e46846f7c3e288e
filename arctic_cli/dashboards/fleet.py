"""All trainings and services of a cluster, on one page."""

from arctic_cli.dashboards.grafana import Dashboard, Link, Panel, Query

_TRAINING = Link("This training", "arctic-training")
_SERVICE = Link("This service", "arctic-service")
_GATEWAY = 'haproxy_backend_http_responses_total{proxy=~"leaders|canary"}'

FLEET = Dashboard(
    "arctic-fleet",
    "Arctic / Fleet",
    "Trainings and services of the cluster, with links to each.",
    (
        (
            Panel(
                "Trainings",
                (Query("max by (namespace, name, state) (arctic_operator_training_info)"),),
                kind="table",
                description="A click leads to the training.",
                link=_TRAINING,
            ),
            Panel(
                "Services",
                (Query("max by (namespace, name, state) (arctic_operator_inference_info)"),),
                kind="table",
                description="A click leads to the service.",
                link=_SERVICE,
            ),
        ),
        (
            Panel(
                "Trainings by state",
                (Query("count by (state) (arctic_operator_training_info)", "{{state}}"),),
                stacked=True,
            ),
            Panel(
                "Services by state",
                (Query("count by (state) (arctic_operator_inference_info)", "{{state}}"),),
                stacked=True,
            ),
        ),
        (
            Panel(
                "Tokens trained on",
                (Query("sum by (namespace, name) (arctic_training_tokens_per_second)", "{{namespace}}/{{name}}"),),
                unit="short",
                description="Tokens a second, of each training.",
                stacked=True,
                link=_TRAINING,
            ),
            Panel(
                "Tokens generated",
                (
                    Query(
                        "sum by (namespace, name) (rate(arctic_inference_generated_tokens_total[$__rate_interval]))",
                        "{{namespace}}/{{name}}",
                    ),
                ),
                description="Tokens a second, of each service.",
                stacked=True,
                link=_SERVICE,
            ),
        ),
        (
            Panel(
                "Requests",
                (
                    Query(
                        f"sum by (namespace, name) (rate({_GATEWAY}[$__rate_interval]))",
                        "{{namespace}}/{{name}}",
                    ),
                ),
                unit="reqps",
                description="Answers of the gateways, whatever they say.",
                link=_SERVICE,
            ),
            Panel(
                "Restarts by budget",
                (
                    Query(
                        "max by (namespace, name) (arctic_operator_training_restarts)",
                        "{{namespace}}/{{name}}: failed attempts",
                    ),
                    Query(
                        "max by (namespace, name) (arctic_operator_training_restart_limit)",
                        "{{namespace}}/{{name}}: limit",
                    ),
                ),
                link=_TRAINING,
            ),
        ),
    ),
)
