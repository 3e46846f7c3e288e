{{/* Service objectives over 30 days, as multi-window, multi-burn-rate alerts: The Site Reliability Workbook, chapter 5.

A burn rate of 1 spends the budget of errors in exactly those 30 days. Paged is for 2% of it in an hour (14.4) and 5% in
six (6); 10% in three days (1) is work for the day. The shorter window ends an alert soon after its cause. */}}

{{/* Shares of bad events by window, as recorded series. */}}
{{- define "arctic.objectives.ratios" -}}
{{- $seconds := toString .Values.monitoring.objectives.timeToFirstToken.seconds }}
{{- $le := ternary $seconds (printf "%s.0" $seconds) (contains "." $seconds) }}
{{- $gateway := `proxy=~"leaders|canary"` }}
{{- range $window := list "5m" "30m" "1h" "6h" "3d" }}
# An answer that is broken off after its first bytes is no 5xx any more.
- record: arctic_inference:request_errors:ratio_rate{{ $window }}
  expr: |-
    (
      sum by (namespace, name) (rate(haproxy_backend_http_responses_total{ {{- $gateway }}, code="5xx"}[{{ $window }}]))
      + sum by (namespace, name) (rate(haproxy_backend_server_aborts_total{ {{- $gateway -}} }[{{ $window }}]))
    )
    / (sum by (namespace, name) (rate(haproxy_backend_http_responses_total{ {{- $gateway -}} }[{{ $window }}])) > 0)
- record: arctic_inference:late_first_tokens:ratio_rate{{ $window }}
  expr: |-
    1 - (
      sum by (namespace, name) (rate(arctic_inference_time_to_first_token_seconds_bucket{le={{ $le | quote }}}[{{ $window }}]))
      / (sum by (namespace, name) (rate(arctic_inference_time_to_first_token_seconds_count[{{ $window }}])) > 0)
    )
{{- end }}
{{- end }}

{{/* The two alerts of one objective: (dict "root" . "alert" NAME "ratio" SERIES "percent" OBJECTIVE "what" SENTENCE) */}}
{{- define "arctic.objectives.burn" -}}
{{- $budget := divf (subf 100 .percent) 100 }}
- alert: {{ .alert }}
  expr: |-
    (
      {{ .ratio }}1h > 14.4 * {{ $budget }}
      and
      {{ .ratio }}5m > 14.4 * {{ $budget }}
    )
    or
    (
      {{ .ratio }}6h > 6 * {{ $budget }}
      and
      {{ .ratio }}30m > 6 * {{ $budget }}
    )
  labels: {severity: critical}
  annotations:
    summary: {{ .what }}, which spends the month's budget fast.
    description: >-
      The objective is {{ .percent }}% over 30 days. In the last hour more than 2% of what may fail in a month did, or in
      the last six more than 5%, and it goes on.
    runbook_url: {{ include "arctic.runbook" (list .root .alert) }}
- alert: {{ .alert }}
  expr: |-
    {{ .ratio }}3d > {{ $budget }}
    and
    {{ .ratio }}6h > {{ $budget }}
  labels: {severity: warning}
  annotations:
    summary: {{ .what }}, which spends the month's budget before the month is over.
    description: >-
      The objective is {{ .percent }}% over 30 days. In the last three days more than 10% of what may fail in a month
      did, and it goes on.
    runbook_url: {{ include "arctic.runbook" (list .root .alert) }}
{{- end }}

{{- define "arctic.objectives.alerts" -}}
{{- $it := include "arctic.alerts.object" . }}
{{- $first := .Values.monitoring.objectives.timeToFirstToken }}
{{- include "arctic.objectives.burn" (dict "root" . "alert" "ArcticInferenceErrorBudgetBurn"
    "ratio" "arctic_inference:request_errors:ratio_rate" "percent" .Values.monitoring.objectives.availability
    "what" (printf "Requests to %s fail" $it)) }}
{{ include "arctic.objectives.burn" (dict "root" . "alert" "ArcticInferenceFirstTokenBudgetBurn"
    "ratio" "arctic_inference:late_first_tokens:ratio_rate" "percent" $first.percent
    "what" (printf "First tokens of %s come later than %v s" $it $first.seconds)) }}
{{- end }}
