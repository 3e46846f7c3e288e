{{/* The page of docs/runbooks for an alert: (list . NAME) */}}
{{- define "arctic.runbook" -}}
{{- $root := index . 0 }}
{{- printf "%s/%s.md" (trimSuffix "/" $root.Values.monitoring.runbooks) (index . 1) }}
{{- end }}

{{/* The object that an alert is about, as Prometheus fills it in. */}}
{{- define "arctic.alerts.object" -}}
{{ `{{ $labels.namespace }}/{{ $labels.name }}` }}
{{- end }}
