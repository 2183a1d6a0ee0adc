{{- define "weft.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "weft.labels" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* What selects the pods of one component: (dict "root" $ "component" "node") */}}
{{- define "weft.selector" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "weft.podHead" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Whether the DNS pods have the label k8s-app: kube-dns, by which existing NetworkPolicies let pods ask the cluster's DNS.
It also puts them behind a Service kube-dns of the usual kind. So with "auto" they have it unless there is such a Service
of somebody else's: taking it over is to be decided, not to happen.
*/}}
{{- define "weft.kubeDNSLabel" -}}
{{- $want := toString .Values.dns.kubeDNSLabel -}}
{{- if eq $want "auto" -}}
{{- $service := lookup "v1" "Service" .Release.Namespace "kube-dns" | default dict -}}
{{- $owner := dig "metadata" "labels" "app.kubernetes.io/name" "" $service -}}
{{- if or (ne (dig "spec" "selector" "k8s-app" "" $service) "kube-dns") (eq $owner "weft") -}}true{{- end -}}
{{- else if eq $want "true" -}}true
{{- else if ne $want "false" -}}{{ fail (printf "dns.kubeDNSLabel: %q: want auto, true or false" $want) }}
{{- end -}}
{{- end }}
