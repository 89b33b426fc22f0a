{{- /* The image with its tag. */ -}}
{{- define "larder.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{- /* Pod Security level of builders. */ -}}
{{- define "larder.podSecurity" -}}
{{- if .Values.namespace.podSecurity -}}
{{ .Values.namespace.podSecurity }}
{{- else if eq .Values.config.build.layer_format "erofs" -}}
restricted
{{- else -}}
baseline
{{- end -}}
{{- end -}}

{{- /*
The objects of files in config/kubernetes, in the namespace of the release. The first argument is the root
context, the others are file names. The chart reads the files of the kustomization, so that the two cannot differ.
*/ -}}
{{- define "larder.objects" -}}
{{- $root := index . 0 -}}
{{- $own := $root.Release.Namespace -}}
{{- range $file := rest . -}}
{{- $text := $root.Files.Get (printf "files/%s" $file) -}}
{{- $text = replace "system:serviceaccount:larder:" (printf "system:serviceaccount:%s:" $own) $text -}}
{{- range $document := splitList "\n---\n" $text -}}
{{- $object := fromYaml $document -}}
{{- if eq (default "" $object.metadata.namespace) "larder" -}}
{{- $_ := set $object.metadata "namespace" $own -}}
{{- end -}}
{{- range $subject := default list $object.subjects -}}
{{- if eq $subject.namespace "larder" -}}
{{- $_ := set $subject "namespace" $own -}}
{{- end -}}
{{- end -}}
{{- if and (eq $object.kind "ServiceAccount") $root.Values.imagePullSecrets -}}
{{- $secrets := list -}}
{{- range $name := $root.Values.imagePullSecrets -}}
{{- $secrets = append $secrets (dict "name" $name) -}}
{{- end -}}
{{- $_ := set $object "imagePullSecrets" $secrets -}}
{{- end }}
---
{{ toYaml $object }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* larder.toml of the daemons. JSON strings, lists of strings, numbers and booleans are TOML. */ -}}
{{- define "larder.toml" -}}
[api]
tcp = "0.0.0.0:8443"
tls_certificate = "/tls/tls.crt"
tls_key = "/tls/tls.key"
metrics_token_sha256 = [{{ toJson .Values.monitoring.tokenSha256 }}]

[[cluster]]
uid = {{ toJson .Values.cluster.uid }}
runner = "kubernetes"
namespace = {{ toJson .Release.Namespace }}
builder_image = {{ toJson (include "larder.image" .) }}
builder_service_account = "larder-builder"
storage_class = {{ toJson .Values.cluster.storageClass }}
snapshot_class = {{ toJson .Values.cluster.snapshotClass }}
{{- if .Values.cluster.signSecret }}
sign_secret = {{ toJson .Values.cluster.signSecret }}
{{- end }}
{{- if .Values.node.enabled }}
node_namespace = "larder-volumes"
{{- else }}
node_namespace = ""
{{- end }}
{{- if .Values.node.required }}
hold_pods = true
{{- end }}
{{- range $key, $value := .Values.cluster.extra }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- range $tenant := .Values.tenants }}

[[tenant]]
name = {{ toJson $tenant.name }}
token_sha256 = {{ toJson $tenant.tokenSha256 }}
pull_secrets = {{ toJson (default list $tenant.pullSecrets) }}
{{- end }}
{{- range $section, $keys := .Values.config }}

[{{ $section }}]
{{- range $key, $value := $keys }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- if .Values.extraConfig }}

{{ .Values.extraConfig }}
{{- end }}
{{ end -}}

{{- /* larder.toml of the agents. */ -}}
{{- define "larder.node.toml" -}}
[node]
image = {{ toJson (include "larder.image" .) }}
storage_class = {{ toJson .Values.node.storageClass }}
caches = {{ toJson .Values.node.caches }}
verify_layers = {{ toJson .Values.node.verifyLayers }}
snapshotter = {{ toJson .Values.node.snapshotter }}
{{- if .Values.node.readiness }}
readiness = true
{{- end }}
listen = "0.0.0.0:9650"
{{- range $key, $value := .Values.node.extra }}
{{ $key }} = {{ toJson $value }}
{{- end }}

[log]
format = "json"
{{ end -}}
