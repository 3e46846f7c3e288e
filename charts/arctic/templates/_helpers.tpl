{{/* Name of the operator's objects: "arctic-operator" for a release called arctic. Helm takes more names than a Service may have. */}}
{{- define "arctic.name" -}}
{{- if not (regexMatch "^[a-z][-a-z0-9]*$" .Release.Name) }}
{{- fail (printf "a release named %q can have no Service: choose a name of a-z, 0-9 and -, of a letter first" .Release.Name) }}
{{- end }}
{{- printf "%s-operator" (trimSuffix "-operator" .Release.Name | trunc 40 | trimSuffix "-") }}
{{- end }}

{{/* The operator's pods. Workers' NetworkPolicies admit the first label. */}}
{{- define "arctic.selector" -}}
app.kubernetes.io/name: arctic-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* The version as labels and tags may have it, whose + stands before the number of a build. */}}
{{- define "arctic.version" -}}
{{ .Chart.AppVersion | replace "+" "_" }}
{{- end }}

{{- define "arctic.labels" -}}
{{ include "arctic.selector" . }}
app.kubernetes.io/part-of: arctic
app.kubernetes.io/version: {{ include "arctic.version" . | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Reference of an image: (list . .Values.image) */}}
{{- define "arctic.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository ($image.tag | default (include "arctic.version" $root)) }}
{{- end }}
{{- end }}

{{/* A text as the value of a variable: the kubelet replaces $(NAME), and makes $$ one $. */}}
{{- define "arctic.literal" -}}
{{ . | replace "$" "$$" | quote }}
{{- end }}

{{/* A list as the operator reads it from a variable; one that is left empty in a file of values is null. */}}
{{- define "arctic.list" -}}
{{ . | default list | toJson | include "arctic.literal" }}
{{- end }}

{{/* What differs for the workers of each engine, as the operator reads it. */}}
{{- define "arctic.engines" -}}
{{- $root := . }}{{ $engines := dict }}
{{- range $name, $engine := .Values.workers.engines }}
{{- $entry := omit $engine "image" }}
{{- with $engine.image }}{{ $entry = set $entry "image" (include "arctic.image" (list $root .)) }}{{ end }}
{{- $engines = set $engines $name $entry }}
{{- end }}
{{- toJson $engines }}
{{- end }}

{{/* What every container may not do, after the restricted Pod Security standard. */}}
{{- define "arctic.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "arctic.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Whether the operator may read and write LeaderWorkerSets: where groups are made of them, and where the cluster serves them,
     since groups that were made of them go on when others are to be StatefulSets again. */}}
{{- define "arctic.leaderWorkerSets" -}}
{{- if or (eq .Values.inference.groups "LeaderWorkerSet") (.Capabilities.APIVersions.Has "leaderworkerset.x-k8s.io/v1") }}true{{ end }}
{{- end }}

{{/* Port of a URL. */}}
{{- define "arctic.port" -}}
{{- $url := urlParse . }}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) }}
{{- end }}

{{/* Whether Prometheus' kinds are served and wanted. */}}
{{- define "arctic.monitoring" -}}
{{- if and .Values.monitoring.enabled (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1") }}true{{ end }}
{{- end }}

{{/* Where the operator's resources are, for a monitor. */}}
{{- define "arctic.monitoredNamespaces" -}}
{{- if .Values.watchNamespaces -}}
matchNames: {{ toJson .Values.watchNamespaces }}
{{- else -}}
any: true
{{- end }}
{{- end }}

{{/* Whether the definitions are this release's to write. They outlive the release that brought them, and Helm refuses what another's name
     stands on: of the same version they are left as they are, whatever the name of this one. */}}
{{- define "arctic.definitions" -}}
{{- if .Values.crds.enabled }}
{{- $there := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "arctictrainings.arctic.dev" | default dict }}
{{- $notes := dig "metadata" "annotations" dict $there }}
{{- $owner := get $notes "meta.helm.sh/release-name" }}
{{- $theirs := and $owner (not (and (eq $owner .Release.Name) (eq (get $notes "meta.helm.sh/release-namespace") .Release.Namespace))) }}
{{- if or (not $theirs) .Values.crds.takeOver }}true
{{- else if ne (get $notes "arctic.dev/version" | toString) .Chart.AppVersion }}
{{- fail (printf "the definitions of arctic.dev are of another version and belong to the release %s: give Helm --take-ownership --set crds.takeOver=true, or set crds.enabled=false" $owner) }}
{{- end }}
{{- end }}
{{- end }}
