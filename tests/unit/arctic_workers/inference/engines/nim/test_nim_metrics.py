"""A NIM's metrics under our names, and the rates that follow from them."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from arctic_workers.inference.engines.nim.metrics import Figures, History, NimCollector, quantile, read

ONE = """\
# TYPE num_requests_running gauge
num_requests_running{model_name="meta/llama"} 3.0
num_requests_running{model_name="an-adapter"} 1.0
# TYPE num_requests_waiting gauge
num_requests_waiting{model_name="meta/llama"} 2.0
# TYPE gpu_cache_usage_perc gauge
gpu_cache_usage_perc{model_name="meta/llama"} 0.25
# TYPE prompt_tokens_total counter
prompt_tokens_total{model_name="meta/llama"} 109.0
# TYPE generation_tokens_total counter
generation_tokens_total{model_name="meta/llama"} 1.74e+002
# TYPE time_to_first_token_seconds histogram
time_to_first_token_seconds_bucket{le="0.02",model_name="meta/llama"} 2.0
time_to_first_token_seconds_bucket{le="0.75",model_name="meta/llama"} 5.0
time_to_first_token_seconds_bucket{le="+Inf",model_name="meta/llama"} 5.0
time_to_first_token_seconds_count{model_name="meta/llama"} 5.0
time_to_first_token_seconds_sum{model_name="meta/llama"} 0.611
# TYPE time_per_output_token_seconds histogram
time_per_output_token_seconds_bucket{le="+Inf",model_name="meta/llama"} 169.0
time_per_output_token_seconds_count{model_name="meta/llama"} 169.0
time_per_output_token_seconds_sum{model_name="meta/llama"} 1.856
# TYPE e2e_request_latency_seconds histogram
e2e_request_latency_seconds_bucket{le="1.0",model_name="meta/llama"} 4.0
e2e_request_latency_seconds_bucket{le="+Inf",model_name="meta/llama"} 5.0
e2e_request_latency_seconds_count{model_name="meta/llama"} 5.0
e2e_request_latency_seconds_sum{model_name="meta/llama"} 2.468
# TYPE request_finish_total counter
request_finish_total{finished_reason="length",model_name="meta/llama"} 4.0
request_finish_total{finished_reason="stop",model_name="meta/llama"} 1.0
# TYPE request_success_total counter
request_success_total{model_name="meta/llama"} 5.0
# TYPE request_failure_total counter
request_failure_total{model_name="meta/llama"} 0.0
"""
"""Of a NIM 1.x."""
TWO = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 4.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
# TYPE vllm:inter_token_latency_seconds histogram
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01",model_name="m"} 7.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="+Inf",model_name="m"} 9.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 9.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="m"} 0.2
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="abort",model_name="m"} 2.0
"""
"""Of the vLLM in a NIM 2.x."""


def shown(text: str) -> list[str]:
    registry = CollectorRegistry()
    registry.register(NimCollector(lambda: read(text)))
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def test_a_nims_metrics_come_out_under_our_names() -> None:
    assert shown(ONE) == [
        "arctic_inference_requests_waiting 2.0",
        "arctic_inference_requests_running 4.0",
        "arctic_inference_kv_cache_utilization 0.25",
        'arctic_inference_time_to_first_token_seconds_bucket{le="0.02"} 2.0',
        'arctic_inference_time_to_first_token_seconds_bucket{le="0.75"} 5.0',
        'arctic_inference_time_to_first_token_seconds_bucket{le="+Inf"} 5.0',
        "arctic_inference_time_to_first_token_seconds_count 5.0",
        "arctic_inference_time_to_first_token_seconds_sum 0.611",
        'arctic_inference_time_per_output_token_seconds_bucket{le="+Inf"} 169.0',
        "arctic_inference_time_per_output_token_seconds_count 169.0",
        "arctic_inference_time_per_output_token_seconds_sum 1.856",
        'arctic_inference_e2e_latency_seconds_bucket{le="1.0"} 4.0',
        'arctic_inference_e2e_latency_seconds_bucket{le="+Inf"} 5.0',
        "arctic_inference_e2e_latency_seconds_count 5.0",
        "arctic_inference_e2e_latency_seconds_sum 2.468",
        "arctic_inference_prompt_tokens_total 109.0",
        "arctic_inference_generated_tokens_total 174.0",
        'arctic_inference_requests_total{outcome="length"} 4.0',
        'arctic_inference_requests_total{outcome="stop"} 1.0',
        'arctic_inference_requests_total{outcome="failed"} 0.0',
    ]


def test_the_names_of_vllm_do_as_well_and_what_is_not_told_is_left_out() -> None:
    assert shown(TWO) == [
        "arctic_inference_requests_running 4.0",
        "arctic_inference_kv_cache_utilization 0.5",
        'arctic_inference_time_per_output_token_seconds_bucket{le="0.01"} 7.0',
        'arctic_inference_time_per_output_token_seconds_bucket{le="+Inf"} 9.0',
        "arctic_inference_time_per_output_token_seconds_count 9.0",
        "arctic_inference_time_per_output_token_seconds_sum 0.2",
        'arctic_inference_requests_total{outcome="cancelled"} 2.0',
    ]


def test_nothing_is_shown_of_a_nim_that_cannot_be_heard() -> None:
    registry = CollectorRegistry()
    registry.register(NimCollector(lambda: None))
    assert generate_latest(registry) == b""


def test_what_counts_no_requests_is_not_idle() -> None:
    assert not Figures().idle
    assert Figures(running=0).idle
    assert not Figures(running=0, waiting=1).idle


def figures(tokens: float, ended: float, slow: float) -> Figures:
    """Return figures of a NIM with so many requests, of which `slow` had their first token after more than 1 s."""
    return read(
        f"# TYPE generation_tokens_total counter\ngeneration_tokens_total {tokens}\n"
        f'# TYPE request_finish_total counter\nrequest_finish_total{{finished_reason="stop"}} {ended}\n'
        "# TYPE time_to_first_token_seconds histogram\n"
        f'time_to_first_token_seconds_bucket{{le="1.0"}} {ended - slow}\n'
        f'time_to_first_token_seconds_bucket{{le="2.0"}} {ended}\n'
        f'time_to_first_token_seconds_bucket{{le="+Inf"}} {ended}\n'
        f"time_to_first_token_seconds_count {ended}\ntime_to_first_token_seconds_sum 9\n"
    )


def test_rates_are_of_the_last_moments_alone() -> None:
    now = 0.0
    history = History(lambda: now)
    assert (history.tokens_per_second(), history.requests_per_second(), history.ttft_p99()) == (0, 0, 0)
    history.add(figures(1000, 100, 100))
    assert history.ttft_p99() == 0, "those were before we looked"
    now = 5.0
    history.add(figures(1100, 110, 100))
    now = 10.0
    history.add(figures(1300, 120, 100))
    assert (history.tokens_per_second(), history.requests_per_second()) == (30, 2)
    assert history.ttft_p99() == pytest.approx(0.99)
    now = 69.0
    history.add(figures(1300, 121, 101))
    assert history.tokens_per_second() == 0
    assert history.ttft_p99() == pytest.approx(1.99), "one since the look a minute ago"
    now = 70.0
    history.add(figures(5, 1, 0))
    assert (history.tokens_per_second(), history.ttft_p99()) == (0, 0), "the container began anew"


@pytest.mark.parametrize(
    ("buckets", "share", "value"),
    [
        ({}, 0.99, 0.0),
        ({"1.0": 0, "+Inf": 0}, 0.99, 0.0),
        ({"1.0": 10, "2.0": 20, "+Inf": 20}, 0.5, 1.0),
        ({"1.0": 10, "2.0": 20, "+Inf": 20}, 0.75, 1.5),
        ({"1.0": 10, "2.0": 10, "+Inf": 20}, 0.99, 2.0),
    ],
)
def test_a_quantile_lies_between_the_bounds_of_its_bucket(
    buckets: dict[str, float], share: float, value: float
) -> None:
    assert quantile(buckets, share) == pytest.approx(value)
