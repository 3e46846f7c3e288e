{{- define "arctic.alerts.operator" -}}
{{- $here := printf "namespace=%q" .Release.Namespace }}
{{- $operator := printf "%s in %s" (include "arctic.name" .) .Release.Namespace }}
- alert: ArcticOperatorWithoutLeader
  expr: sum(arctic_operator_leader{ {{- $here -}} }) < 1 or absent(arctic_operator_leader{ {{- $here -}} })
  for: 2m
  labels: {severity: critical}
  annotations:
    summary: No Arctic operator leads.
    description: >-
      Nothing is started, restarted or scaled until one does; what runs is not touched. See the pods of {{ $operator }}.
    runbook_url: {{ include "arctic.runbook" (list . "ArcticOperatorWithoutLeader") }}
- alert: ArcticOperatorNotReconciling
  # Objects are due and none is done; or the watches show nothing of what is written. Who doesn't lead has a queue that
  # waits. The kubelet soon ends an operator that sees nothing, and the next one counts from 0: told is what comes again.
  expr: |-
    (
      sum(
        arctic_operator_workqueue_depth{ {{- $here -}} }
        and on (pod)
        arctic_operator_leader{ {{- $here -}} } == 1
      ) > 0
      unless
      sum(rate(arctic_operator_reconcile_total{ {{- $here }}, result="success"}[10m])) > 0
    )
    or
    max(max_over_time(arctic_operator_heartbeat_unseen_seconds{ {{- $here -}} }[4m])) > 60
  for: 5m
  labels: {severity: critical}
  annotations:
    summary: The Arctic operator leads and gets nothing done.
    description: >-
      Objects have been waiting for {{ $operator }}, or its watches show nothing any more. Nothing is started, restarted
      or scaled; what runs is not touched.
    runbook_url: {{ include "arctic.runbook" (list . "ArcticOperatorNotReconciling") }}
- alert: ArcticOperatorFailing
  expr: |-
    sum(rate(arctic_operator_reconcile_total{ {{- $here }}, result="error"}[5m]))
    > 0.1 * sum(rate(arctic_operator_reconcile_total{ {{- $here -}} }[5m]))
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: More than a tenth of the Arctic operator's reconciliations fail.
    description: The log of {{ $operator }} names the objects and the reasons.
    runbook_url: {{ include "arctic.runbook" (list . "ArcticOperatorFailing") }}
- alert: ArcticCertificateNearExpiry
  # An authority is replaced when a third of its three years is left, all others when 30 of their 90 days are.
  expr: |-
    min by (namespace, name) (arctic_control_certificate_expiry_timestamp_seconds) - time() < 14 * 86400
    or
    max by (namespace, name) (label_join(
      arctic_operator_certificate_expiry_timestamp_seconds{ {{- $here }}, certificate="authority"},
      "name", "", "certificate"
    )) - time() < 90 * 86400
    or
    max by (namespace, name) (label_join(
      arctic_operator_certificate_expiry_timestamp_seconds{ {{- $here }}, certificate="client"},
      "name", "", "certificate"
    )) - time() < 14 * 86400
  for: 1h
  labels: {severity: warning}
  annotations:
    summary: The certificate of {{ include "arctic.alerts.object" . }} ends soon.
    description: >-
      It should have been replaced weeks ago: that of an object's workers, or the operator's own (authority, client). When
      it ends the operator hears nothing of the workers any more; what runs goes on.
    runbook_url: {{ include "arctic.runbook" (list . "ArcticCertificateNearExpiry") }}
{{- end }}
