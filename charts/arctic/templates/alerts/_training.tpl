{{- define "arctic.alerts.training" -}}
{{- $it := include "arctic.alerts.object" . }}
- alert: ArcticTrainingStalled
  expr: |-
    max by (namespace, name) (
      changes(arctic_training_steps_total[5m]) == 0
      and on (namespace, pod)
      arctic_training_attempt_info{phase="RUNNING"}
    )
  for: {{ .Values.monitoring.alerts.stalledAfter }}
  labels: {severity: critical}
  annotations:
    summary: The training {{ $it }} runs and makes no step.
    description: >-
      Its workers say that they train, and the number of steps has stood still for longer than
      {{ .Values.monitoring.alerts.stalledAfter }}: its nodes are paid for and nothing is learnt.
    runbook_url: {{ include "arctic.runbook" (list . "ArcticTrainingStalled") }}
- alert: ArcticTrainingNotStarting
  expr: |-
    max by (namespace, name) (
      arctic_operator_training_info{state!~"Running|Paused|Exporting|Finishing|Succeeded|Failed|Suspending|Suspended|Stopping|Queued|WaitingForTraining|InvalidSpec"}
    )
  for: {{ .Values.monitoring.alerts.startWithin }}
  labels: {severity: warning}
  annotations:
    summary: The training {{ $it }} does not get to run.
    description: >-
      It has been about to start for {{ .Values.monitoring.alerts.startWithin }}. Its condition Degraded says what keeps
      it, in the cluster's own words.
    runbook_url: {{ include "arctic.runbook" (list . "ArcticTrainingNotStarting") }}
- alert: ArcticTrainingNotEnding
  # What hangs in a step ends by itself. Who writes a checkpoint or an export for all may hang with its store, and the
  # others wait for that as long as for a preparation of data.
  expr: max by (namespace, name) (arctic_training_attempt_info{phase=~"CHECKPOINTING|EXPORTING"})
  for: {{ .Values.monitoring.alerts.endWithin }}
  labels: {severity: warning}
  annotations:
    summary: The training {{ $it }} has made its last step and does not end.
    description: >-
      It has been writing its last checkpoint or its export for {{ .Values.monitoring.alerts.endWithin }}: its nodes are
      paid for and nothing is learnt.
    runbook_url: {{ include "arctic.runbook" (list . "ArcticTrainingNotEnding") }}
- alert: ArcticTrainingLossNaN
  # A loss that is no number now; an attempt that ended by one; or one update after the other that was left out for it.
  expr: |-
    max by (namespace, name) (arctic_training_loss != arctic_training_loss or abs(arctic_training_loss) == Inf)
    or
    time() - max by (namespace, name) (
      arctic_operator_training_attempt_end_timestamp_seconds{reason="Diverged"}
    ) < 3600
    or
    max by (namespace, name) (increase(arctic_training_skipped_updates_total[15m])) > 3
  labels: {severity: critical}
  annotations:
    summary: The loss of the training {{ $it }} is no number, or updates are left out because of it.
    description: >-
      Steps that are left out are spent for nothing, and an attempt that ends so is counted towards restart.limit.
    runbook_url: {{ include "arctic.runbook" (list . "ArcticTrainingLossNaN") }}
- alert: ArcticTrainingCheckpointTooOld
  # Twice what the manifest asks for; after a restart the time counts from the start.
  expr: |-
    max by (namespace, name) (
      (
        arctic_training_steps_total - arctic_training_last_checkpoint_step > 2 * arctic_training_checkpoint_every_steps
        or
        time() - (
          arctic_training_last_checkpoint_timestamp_seconds > process_start_time_seconds or process_start_time_seconds
        ) > 2 * arctic_training_checkpoint_every_seconds + 600
      )
      and on (namespace, pod)
      arctic_training_attempt_info{phase="RUNNING"}
    )
  for: 5m
  labels: {severity: warning}
  annotations:
    summary: The newest checkpoint of the training {{ $it }} is more than twice as old as its manifest asks for.
    description: >-
      Checkpoints are due and not committed: whatever ends this attempt costs all that was trained since the last one.
    runbook_url: {{ include "arctic.runbook" (list . "ArcticTrainingCheckpointTooOld") }}
- alert: ArcticTrainingRestartsBurning
  # As many failed attempts as in the last six hours, once more, and there is none left.
  expr: |-
    (
      (
        max by (namespace, name) (arctic_operator_training_restarts)
        - min by (namespace, name) (min_over_time(arctic_operator_training_restarts[6h]))
      ) > 0
    )
    >= (
      max by (namespace, name) (arctic_operator_training_restart_limit)
      - max by (namespace, name) (arctic_operator_training_restarts)
    )
    and on (namespace, name)
    arctic_operator_training_info{state!~"Succeeded|Failed"}
  labels: {severity: critical}
  annotations:
    summary: The training {{ $it }} will soon have failed more often than restart.limit allows.
    description: >-
      At the pace of the last six hours its budget of restarts is gone within the next six; then it is Failed for good.
    runbook_url: {{ include "arctic.runbook" (list . "ArcticTrainingRestartsBurning") }}
{{- end }}
