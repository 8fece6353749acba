{{- define "embedgrpc.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "embedgrpc.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "embedgrpc.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "embedgrpc.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "embedgrpc.selectorLabels" -}}
app.kubernetes.io/name: {{ include "embedgrpc.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "embedgrpc.labels" -}}
{{ include "embedgrpc.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "embedgrpc.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "embedgrpc.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "embedgrpc.image" -}}
{{- $tag := .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion (ternary "cuda" "cpu" (include "embedgrpc.onGpu" . | eq "true"))) }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository $tag }}
{{- end }}
{{- end }}

{{- /* Whether the server itself has the GPU: with Triton, that has it. */ -}}
{{- define "embedgrpc.onGpu" -}}
{{- and .Values.gpu.enabled (eq .Values.triton.mode "off") }}
{{- end }}

{{- /* A value as TOML: JSON's strings, numbers and lists are TOML's, its objects are not. */ -}}
{{- define "embedgrpc.toml" -}}
{{- if kindIs "map" . }}
{{- $pairs := list }}
{{- range $key, $value := . }}
{{- $pairs = append $pairs (printf "%s = %s" ($key | toJson) (include "embedgrpc.toml" $value)) }}
{{- end }}
{{- printf "{ %s }" (join ", " $pairs) }}
{{- else }}
{{- toJson . }}
{{- end }}
{{- end }}

{{- /* The file of the server's configuration. */ -}}
{{- define "embedgrpc.config" -}}
{{- range $key, $value := .Values.settings }}
{{ $key }} = {{ include "embedgrpc.toml" $value }}
{{- end }}
{{- $root := . }}
{{- range .Values.models }}
{{- $model := . }}
{{- if ne $root.Values.triton.mode "off" }}
{{- /* What else is said of it stands in the repository. */ -}}
{{- $model = merge (dict "source" (include "embedgrpc.tritonSource" (dict "root" $root "model" .))) (pick . "id" "aliases") }}
{{- end }}
{{ include "embedgrpc.model" $model }}
{{- end }}
{{- end }}

{{- define "embedgrpc.model" -}}
[[models]]
{{- range $key, $value := . }}
{{ $key }} = {{ include "embedgrpc.toml" $value }}
{{- end }}
{{- end }}

{{- define "embedgrpc.tritonSource" -}}
{{- if eq .root.Values.triton.mode "sidecar" }}
{{- printf "triton:127.0.0.1:8001/%s" .model.id }}
{{- else }}
{{- printf "triton%s:%s/%s" (ternary "+tls" "" .root.Values.triton.tls) .root.Values.triton.address .model.id }}
{{- end }}
{{- end }}

{{- define "embedgrpc.metricsScheme" -}}
{{- ternary "https" "http" (not (empty .Values.tls.secretName)) }}
{{- end }}

{{- /* Values that do not go together, by name. */ -}}
{{- define "embedgrpc.check" -}}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled }}
{{- fail "autoscaling.enabled and keda.enabled: choose one, both would set the number of replicas" }}
{{- end }}
{{- if and (or .Values.autoscaling.enabled .Values.keda.enabled .Values.serviceMonitor.enabled) (not .Values.metrics.enabled) }}
{{- fail "metrics.enabled is false, but autoscaling, keda and serviceMonitor read the metrics" }}
{{- end }}
{{- if and .Values.keda.enabled (empty .Values.keda.prometheusAddress) }}
{{- fail "keda.prometheusAddress is empty: KEDA must know which Prometheus to ask" }}
{{- end }}
{{- if and .Values.tls.clientCaSecretName (empty .Values.tls.secretName) }}
{{- fail "tls.clientCaSecretName needs tls.secretName: without TLS there are no certificates" }}
{{- end }}
{{- range $key := list "address" "http_address" "health_address" "metrics_address" "cache_dir" "tls_certificate_file" "tls_key_file" "tls_client_ca_file" "api_keys_file" "models" "config" }}
{{- if hasKey $.Values.settings $key }}
{{- fail (printf "settings.%s: the chart sets it by other values" $key) }}
{{- end }}
{{- end }}
{{- if ne .Values.triton.mode "off" }}
{{- if empty .Values.models }}
{{- fail (printf "triton.mode is %s, but models is empty: name the models that Triton runs" .Values.triton.mode) }}
{{- end }}
{{- range $index, $model := .Values.models }}
{{- if not (regexMatch "^[A-Za-z0-9_.-]+$" ($model.id | default "")) }}
{{- fail (printf "models[%d].id is %q: a model on Triton needs an id of letters, digits, '_', '.' and '-'" $index ($model.id | default "")) }}
{{- end }}
{{- end }}
{{- if and (eq .Values.triton.mode "sidecar") (empty .Values.triton.image.repository) }}
{{- fail "triton.image.repository is empty: name NVIDIA's image and the registry that you take it from" }}
{{- end }}
{{- if and (eq .Values.triton.mode "service") (empty .Values.triton.address) }}
{{- fail "triton.address is empty: name HOST:PORT of the Triton servers" }}
{{- end }}
{{- end }}
{{- end }}
