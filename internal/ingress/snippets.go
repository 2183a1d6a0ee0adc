// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"regexp"
	"slices"
	"strings"
)

var snippetAnnotations = []Annotation{
	{Name: "configuration-snippet", Group: "Snippets", Verdict: Refused, Values: "nginx configuration", snippet: true, Note: snippetNote},
	{Name: "server-snippet", Group: "Snippets", Verdict: Refused, Values: "nginx configuration", snippet: true, Note: snippetNote},
	{Name: "auth-snippet", Group: "Snippets", Verdict: Refused, Values: "nginx configuration", snippet: true, Note: snippetNote},
	{Name: "stream-snippet", Group: "Snippets", Verdict: Refused, Values: "nginx configuration", snippet: true, Note: snippetNote},
}

const snippetNote = "weft runs no nginx, so arbitrary nginx configuration is refused. The event names what to use in place of the directives that it knows. " +
	"Where they may have kept somebody out, the Ingress's paths answer 503 until the annotation is gone"

// A directive that snippets are commonly used for, with what has its effect in weft. guards are those whose absence could
// let somebody in.
type directive struct {
	pattern *regexp.Regexp
	instead string
	guards  bool
}

func d(pattern, instead string, guards bool) directive {
	return directive{regexp.MustCompile(`(?i)(?:^|[;{}\s])` + pattern), instead, guards}
}

var directives = []directive{
	d(`more_set_headers|add_header\s+x-frame|add_header\s+content-security|add_header\s`, Prefix+"custom-headers sets response headers", false),
	d(`more_set_input_headers|proxy_set_header\s`, "proxy-set-headers in the ConfigMap, or an HTTPRoute's RequestHeaderModifier, sets request headers", false),
	d(`more_clear_headers|proxy_hide_header\s`, "hide-headers in the ConfigMap, or an HTTPRoute's ResponseHeaderModifier, removes response headers", false),
	d(`rewrite\s.*\s(?:permanent|redirect)\s*;`, Prefix+"permanent-redirect and "+Prefix+"temporal-redirect redirect", false),
	d(`rewrite\s`, Prefix+"rewrite-target with "+Prefix+"use-regex rewrites paths", false),
	d(`return\s+30[12378]\b`, Prefix+"permanent-redirect and "+Prefix+"temporal-redirect redirect", false),
	d(`return\s+(?:4\d\d|503|444)\b`, "a path of its own without a Service, or a NetworkPolicy, refuses requests; "+Prefix+"whitelist-source-range refuses addresses", true),
	d(`(?:allow|deny)\s+[^;]+;`, Prefix+"whitelist-source-range and "+Prefix+"denylist-source-range admit and refuse addresses", true),
	d(`auth_basic`, Prefix+"auth-type: basic with "+Prefix+"auth-secret asks for passwords", true),
	d(`auth_request`, Prefix+"auth-url asks another server", true),
	d(`satisfy\s`, Prefix+"satisfy", true),
	d(`limit_req|limit_conn`, Prefix+"limit-rps, "+Prefix+"limit-rpm and "+Prefix+"limit-connections limit clients", true),
	d(`ssl_verify_client|ssl_client_certificate`, Prefix+"auth-tls-secret asks for client certificates", true),
	d(`modsecurity`, Prefix+"enable-modsecurity", true),
	d(`(?:access|rewrite|content)_by_lua`, "external authentication ("+Prefix+"auth-url) decides about requests", true),
	d(`client_max_body_size`, Prefix+"proxy-body-size", false),
	d(`proxy_(?:read|send|connect)_timeout`, Prefix+"proxy-read-timeout, "+Prefix+"proxy-send-timeout and "+Prefix+"proxy-connect-timeout", false),
	d(`proxy_(?:buffering|buffer_size|buffers)`, Prefix+"proxy-buffering", false),
	d(`gzip|brotli`, "compression belongs to the application or a cache before the gateway", false),
	d(`proxy_cache\b`, "a cache belongs before or behind the gateway", false),
	d(`proxy_pass\s`, "a path with its own Service (or one of type ExternalName) sends requests elsewhere", false),
	d(`location\s`, "a path of its own, in an Ingress with its own annotations, is a location", false),
	d(`access_log\s+off`, Prefix+"enable-access-log: \"false\"", false),
	d(`grpc_`, Prefix+"backend-protocol: GRPC and the proxy-*-timeout annotations", false),
	d(`sub_filter`, "answers' bodies are not rewritten", false),
	d(`proxy_cookie_`, Prefix+"proxy-cookie-path and "+Prefix+"proxy-cookie-domain", false),
	d(`(?:set|if)\s*[$(]`, "an HTTPRoute matches headers, query parameters and methods", false),
}

// readSnippet names what to use in place of the directives of a snippet, and tells whether one of them may have kept
// somebody out.
func readSnippet(value string) (instead []string, guards bool) {
	for _, d := range directives {
		if !d.pattern.MatchString(value) {
			continue
		}
		guards = guards || d.guards
		if !slices.Contains(instead, d.instead) {
			instead = append(instead, d.instead)
		}
	}
	if len(instead) > 4 {
		instead = instead[:4]
	}
	return instead, guards || strings.Contains(value, "_by_lua")
}
