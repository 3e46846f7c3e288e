{{- define "arctic.alerts.inference" -}}
{{- $it := include "arctic.alerts.object" . }}
{{- $planned := .Values.monitoring.alerts.loadWithin }}
- alert: ArcticInferenceUnavailable
  # The first start of a service takes as long as its weights do: it is down once it has been up. One that was scaled to
  # zero or suspended loads them again, and has its time for that.
  expr: |-
    (
      max by (namespace, name) (arctic_operator_inference_ready_replicas) == 0
      and
      min by (namespace, name) (
        min_over_time(arctic_operator_inference_desired_replicas[{{ $planned }}])
      ) > 0
      and
      max by (namespace, name) (max_over_time(arctic_operator_inference_ready_replicas[1d])) > 0
    )
    unless on (namespace, name)
    max_over_time(arctic_operator_inference_info{state=~"Suspended|Suspending"}[{{ $planned }}])
    or
    max by (namespace, name) (arctic_operator_inference_info{state="NoGateway"}) == 1
  for: 2m
  labels: {severity: critical}
  annotations:
    summary: No replica of {{ $it }} can be reached.
    description: >-
      Every request gets 503, or none is taken where no gateway runs. The conditions of the ArcticInference say what has
      become of its groups, or of the gateway's pods.
    runbook_url: {{ include "arctic.runbook" (list . "ArcticInferenceUnavailable") }}
- alert: ArcticInferenceSlow
  expr: |-
    histogram_quantile(0.95,
      sum by (namespace, name, le) (rate(arctic_inference_time_per_output_token_seconds_bucket[10m]))
    ) > {{ .Values.monitoring.alerts.secondsPerToken }}
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: Answers of {{ $it }} come slowly.
    description: >-
      One token in twenty has come more than {{ .Values.monitoring.alerts.secondsPerToken }} s after the one before it.
    runbook_url: {{ include "arctic.runbook" (list . "ArcticInferenceSlow") }}
- alert: ArcticInferenceQueueing
  expr: |-
    sum by (namespace, name) (
      haproxy_backend_current_queue{proxy=~"leaders|canary"} or haproxy_server_current_queue{proxy=~"leaders|canary"}
    ) > 0
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: Requests to {{ $it }} have been waiting in the gateway for ten minutes.
    description: All replicas carry as many requests as they take. Raise spec.replicas, or let autoscaling do so.
    runbook_url: {{ include "arctic.runbook" (list . "ArcticInferenceQueueing") }}
- alert: ArcticInferenceCacheFull
  expr: |-
    max by (namespace, name) (
      arctic_inference_kv_cache_utilization > 0.95
      and on (namespace, pod)
      arctic_inference_requests_waiting > 0
    )
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: The cache for keys and values of {{ $it }} is full, and requests wait for room in it.
    description: What is running has to end before anything else begins, whatever is left of the processors' time.
    runbook_url: {{ include "arctic.runbook" (list . "ArcticInferenceCacheFull") }}
{{- end }}
