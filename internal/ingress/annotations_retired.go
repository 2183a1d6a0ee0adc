// SPDX-License-Identifier: Apache-2.0

package ingress

// retiredAnnotations are those of older releases of ingress-nginx that manifests still have.
var retiredAnnotations = []Annotation{
	retired("secure-backends", "true, false", "backend-protocol: HTTPS takes its place", true),
	retired("global-rate-limit", "number", "ingress-nginx 1.10 dropped it; limit-rps and limit-rpm count in each gateway pod", true),
	retired("global-rate-limit-window", "time", "ingress-nginx 1.10 dropped it", false),
	retired("global-rate-limit-key", "variable", "ingress-nginx 1.10 dropped it", false),
	retired("global-rate-limit-ignored-cidrs", "CIDRs", "ingress-nginx 1.10 dropped it; limit-allowlist takes its place", false),
	retired("enable-opentracing", "true, false", "OpenTelemetry has taken the place of OpenTracing", false),
	retired("opentracing-trust-incoming-span", "true, false", "OpenTelemetry has taken the place of OpenTracing", false),
	retired("enable-influxdb", "true, false", "Prometheus metrics are always there", false),
	retired("influxdb-measurement", "text", "Prometheus metrics are always there", false),
	retired("influxdb-port", "port", "Prometheus metrics are always there", false),
	retired("influxdb-host", "host", "Prometheus metrics are always there", false),
	retired("influxdb-server-name", "text", "Prometheus metrics are always there", false),
	retired("lua-resty-waf", "text", "enable-modsecurity takes its place", true),
	retired("proxy-ssl-session-reuse", "on, off", "TLS sessions are always resumed where the endpoint allows it", false),
	retired("add-base-url", "true, false", "the application knows its base URL by X-Forwarded-Prefix: set x-forwarded-prefix", false),
	retired("base-url-scheme", "http, https", "the application knows its scheme by X-Forwarded-Proto", false),
	retired("session-cookie-hash", "md5, sha1", "the cookie tells nothing that a hash would have to hide", false),
}

// retired makes a refused row; closed ones were to keep somebody out.
func retired(name, values, note string, closed bool) Annotation {
	return Annotation{Name: name, Group: "Retired by ingress-nginx", Verdict: Refused, Values: values, Note: note, closed: closed}
}
