"""One inference service: what its clients get, what its groups do, and what is left of its budget of errors."""

from arctic_cli.dashboards.grafana import Dashboard, Panel, Query, Variable

_IT = 'namespace="$namespace", name="$name"'
_OBJECT = f"{{{_IT}}}"
_GATEWAY = f'{{{_IT}, proxy=~"leaders|canary"}}'


def _quantiles(metric: str, *shares: float) -> tuple[Query, ...]:
    return tuple(
        Query(
            f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{_OBJECT}[$__rate_interval])))",
            f"p{share * 100:.0f}",
        )
        for share in shares
    )


ONE_SERVICE = Dashboard(
    "arctic-service",
    "Arctic / Service",
    "Requests, latencies, queue, cache and objectives of one ArcticInference.",
    (
        (
            Panel(
                "Answers",
                (
                    Query(
                        f"sum by (code) (rate(haproxy_backend_http_responses_total{_GATEWAY}[$__rate_interval]))",
                        "{{code}}",
                    ),
                    Query(
                        f"sum(rate(haproxy_backend_server_aborts_total{_GATEWAY}[$__rate_interval]))",
                        "broken off",
                    ),
                ),
                unit="reqps",
                description="Of the gateway.",
                stacked=True,
            ),
            Panel(
                "Tokens",
                (
                    Query(
                        f"sum(rate(arctic_inference_generated_tokens_total{_OBJECT}[$__rate_interval]))", "generated"
                    ),
                    Query(f"sum(rate(arctic_inference_prompt_tokens_total{_OBJECT}[$__rate_interval]))", "of prompts"),
                ),
                description="A second.",
            ),
        ),
        (
            Panel(
                "Time to first token",
                _quantiles("arctic_inference_time_to_first_token_seconds", 0.5, 0.95, 0.99),
                unit="s",
            ),
            Panel(
                "Time per output token",
                _quantiles("arctic_inference_time_per_output_token_seconds", 0.5, 0.95, 0.99),
                unit="s",
            ),
            Panel(
                "Time of a whole answer",
                _quantiles("arctic_inference_e2e_latency_seconds", 0.5, 0.95, 0.99),
                unit="s",
            ),
        ),
        (
            Panel(
                "Requests at once",
                (
                    Query(f"sum(arctic_inference_requests_running{_OBJECT})", "running"),
                    Query(f"sum(arctic_inference_requests_waiting{_OBJECT})", "waiting in replicas"),
                    Query(
                        f"sum(haproxy_backend_current_queue{_GATEWAY}) + sum(haproxy_server_current_queue{_GATEWAY})",
                        "waiting in the gateway",
                    ),
                    Query(f"max(arctic_operator_inference_waiting_requests{_OBJECT})", "the same, held ones too"),
                ),
            ),
            Panel(
                "Room for keys and values",
                (Query(f"arctic_inference_kv_cache_utilization{_OBJECT}", "{{pod}}"),),
                unit="percentunit",
            ),
        ),
        (
            Panel(
                "How requests ended",
                (
                    Query(
                        f"sum by (outcome) (increase(arctic_inference_requests_total{_OBJECT}[$__rate_interval]))",
                        "{{outcome}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                "Groups",
                (
                    Query(f"max(arctic_operator_inference_desired_replicas{_OBJECT})", "asked for"),
                    Query(f"max(arctic_operator_inference_replicas{_OBJECT})", "there"),
                    Query(f"max(arctic_operator_inference_ready_replicas{_OBJECT})", "ready"),
                ),
            ),
            Panel(
                "Weights in memory",
                (Query(f"arctic_inference_loaded_ratio{_OBJECT}", "{{pod}}"),),
                unit="percentunit",
                description="How far each leader has loaded.",
            ),
        ),
        (
            Panel(
                "Failed and late, against the objectives",
                (
                    Query(f"arctic_inference:request_errors:ratio_rate5m{_OBJECT}", "failed, of five minutes"),
                    Query(f"arctic_inference:request_errors:ratio_rate3d{_OBJECT}", "failed, of three days"),
                    Query(f"arctic_inference:late_first_tokens:ratio_rate5m{_OBJECT}", "late, of five minutes"),
                    Query(f"arctic_inference:late_first_tokens:ratio_rate3d{_OBJECT}", "late, of three days"),
                ),
                unit="percentunit",
                description="Shares of requests; the alerts' rules record them.",
            ),
            Panel(
                "Stable and canary",
                (
                    Query(
                        f"sum by (proxy) (rate(haproxy_backend_http_responses_total{_GATEWAY}[$__rate_interval]))",
                        "{{proxy}}",
                    ),
                ),
                unit="reqps",
                description="Where the gateway has sent requests.",
                stacked=True,
            ),
        ),
    ),
    (Variable("namespace", "arctic_operator_inference_info"), Variable("name", "arctic_operator_inference_info")),
)
