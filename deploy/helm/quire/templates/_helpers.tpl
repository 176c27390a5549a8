{{/* The name of everything in a release. */}}
{{- define "quire.name" -}}
{{- if contains "quire" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-quire{{ end }}
{{- end }}

{{/* What selects the pods of a release. */}}
{{- define "quire.selector" -}}
app.kubernetes.io/name: quire
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "quire.labels" -}}
{{ include "quire.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: server
{{- end }}

{{/* The Secret with the keys; empty where there is none. */}}
{{- define "quire.secret" -}}
{{- if .Values.existingSecret }}{{ .Values.existingSecret }}
{{- else if or .Values.apiKey .Values.adminApiKey .Values.hfToken }}{{ include "quire.name" . }}
{{- end }}
{{- end }}
