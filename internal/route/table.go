// SPDX-License-Identifier: Apache-2.0

package route

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
)

// Update is a change of a gateway's tables, or, when Complete, all of them. Each resource is a unit of change of its
// own and keeps the granularity that its owner wrote: a route names the listeners that it is attached to, a rule
// names its backends, a backend names its endpoints. So a new route is one Route, an EndpointSlice's change one
// EndpointSet, a renewed certificate one Certificate, however many others there are.
//
// References may point at what is not there (yet): a rule whose Backend is missing answers 500, a Backend whose
// EndpointSet is missing or empty 503, a Listener whose Certificate is missing fails its handshakes. The order of
// arrival does not matter.
type Update struct {
	// Revision grows with each update. The gateway confirms the revision that it serves.
	Revision uint64 `json:"revision"`
	// Complete says that the update is all there is: what it does not hold is gone.
	Complete bool `json:"complete,omitempty"`

	Listeners    []Listener    `json:"listeners,omitempty"`
	Routes       []Route       `json:"routes,omitempty"`
	Backends     []Backend     `json:"backends,omitempty"`
	Endpoints    []EndpointSet `json:"endpoints,omitempty"`
	Certificates []Certificate `json:"certificates,omitempty"`
	Policies     []Policy      `json:"policies,omitempty"`

	// Removed are the resources that are gone; of no meaning when Complete.
	Removed []Ref `json:"removed,omitempty"`
}

// Kind is a kind of resource in a table.
type Kind string

// The kinds of resources.
const (
	KindListener    Kind = "Listener"
	KindRoute       Kind = "Route"
	KindBackend     Kind = "Backend"
	KindEndpointSet Kind = "EndpointSet"
	KindCertificate Kind = "Certificate"
	KindPolicy      Kind = "Policy"
)

// Ref names a resource by its kind and key.
type Ref struct {
	Kind Kind   `json:"kind"`
	Key  string `json:"key"`
}

// Protocol is what a listener speaks, with Gateway API's names.
type Protocol string

// The protocols of listeners.
const (
	HTTP  Protocol = "HTTP"
	HTTPS Protocol = "HTTPS"
	TLS   Protocol = "TLS"
	TCP   Protocol = "TCP"
	UDP   Protocol = "UDP"
)

// Listener is one listener of a Gateway or ListenerSet. Listeners share a port when they differ by hostname.
type Listener struct {
	// Key is unique in the gateway, such as "web/shop/https".
	Key      string   `json:"key"`
	Protocol Protocol `json:"protocol"`
	// Addresses to bind; none are all of the host's, in both families.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Port      uint16       `json:"port"`
	// PublicPort is the port that clients connect to, where it differs from the one bound. Redirects name it. 0: Port.
	PublicPort uint16 `json:"publicPort,omitempty"`
	// Hostname is exact ("a.example.com"), a wildcard ("*.example.com": one or more labels), or "" for all. Of the
	// listeners of a port the most specific one gets the request or connection, and no other (listener isolation).
	Hostname string       `json:"hostname,omitempty"`
	TLS      *ListenerTLS `json:"tls,omitempty"` // HTTPS and TLS have it
	// ProxyProtocol requires a PROXY protocol header (version 1 or 2) at the start of each connection of the port.
	ProxyProtocol bool `json:"proxyProtocol,omitempty"`
	// ProxySources are those whose PROXY header is believed: of others it is read, and the connection's own addresses
	// count. None: of all.
	ProxySources []netip.Prefix `json:"proxySources,omitempty"`
	// TrustedProxies may tell the client's address in X-Forwarded-For or Forwarded; of all others the headers are
	// replaced.
	TrustedProxies []netip.Prefix `json:"trustedProxies,omitempty"`
	// Forwarded tells backends in Forwarded (RFC 7239), too. Where a trusted proxy does so it is added to in any case.
	Forwarded bool `json:"forwarded,omitempty"`
	// Filters act in their order on every request before a route is looked for (GEP-5224), which then sees what they made
	// of it. ExternalAuth is the only one that there is; any other answers 500.
	Filters []Filter `json:"filters,omitempty"`
	// Policies are keys; later ones come before earlier ones, and a route's before all of them.
	Policies []string `json:"policies,omitempty"`
}

// ListenerTLS says how a listener ends TLS, or that it does not.
type ListenerTLS struct {
	// Passthrough hands the connection to the backend as it is; only the ClientHello is read.
	Passthrough bool `json:"passthrough,omitempty"`
	// Certificates are keys, the preferred one first.
	Certificates []string `json:"certificates,omitempty"`
	// ALPN protocols, preferred first. None: "h2", "http/1.1" on HTTPS, nothing on TLS.
	ALPN []string `json:"alpn,omitempty"`
	// MinVersion and MaxVersion are "1.2" or "1.3". Empty: 1.2, 1.3.
	MinVersion string `json:"minVersion,omitempty"`
	MaxVersion string `json:"maxVersion,omitempty"`
	// CipherSuites for TLS 1.2, by IANA names. None: those without known weaknesses.
	CipherSuites []string          `json:"cipherSuites,omitempty"`
	Client       *ClientValidation `json:"client,omitempty"` // nil: no client certificate is asked for
}

// ClientValidation is how client certificates are checked (GEP-91).
type ClientValidation struct {
	// CAs that may have signed, in PEM. Without any usable one no certificate is valid.
	CAs string `json:"cas"`
	// AllowInsecureFallback lets clients in whose certificate is missing or not valid.
	AllowInsecureFallback bool `json:"allowInsecureFallback,omitempty"`
	// Optional lets clients in that show no certificate; one that is shown must be valid.
	Optional bool `json:"optional,omitempty"`
	// Depth is how many certificates may lie between the client's and a CA's; 0 is no limit.
	Depth int `json:"depth,omitempty"`
	// Subject is a regular expression (RE2) that the certificate's subject must match: 403 else.
	Subject string `json:"subject,omitempty"`
	// ErrorPage is where a client without a valid certificate is sent (302) in place of a 400.
	ErrorPage string `json:"errorPage,omitempty"`
	// Pass tells backends the certificate in ssl-client-cert, and always ssl-client-verify, -subject-dn and -issuer-dn,
	// as ingress-nginx names them.
	Pass bool `json:"pass,omitempty"`
	// Headers are told to backends as above (auth-tls); clients' own of these names are removed.
	Headers bool `json:"headers,omitempty"`
}

// RouteKind tells what a route's rules match.
type RouteKind string

// The kinds of routes. Ingress rules are HTTPRoutes here.
const (
	HTTPRoute RouteKind = "HTTPRoute"
	GRPCRoute RouteKind = "GRPCRoute"
	TLSRoute  RouteKind = "TLSRoute"
	TCPRoute  RouteKind = "TCPRoute"
	UDPRoute  RouteKind = "UDPRoute"
)

// Route is one route object, with the listeners that accepted it.
type Route struct {
	// Key is unique in the gateway, such as "HTTPRoute/shop/cart".
	Key  string    `json:"key"`
	Kind RouteKind `json:"kind"`
	// Parents are the listeners that it is attached to.
	Parents []Parent `json:"parents"`
	// Created is the object's creation time in Unix seconds, and Name is "namespace/name": of equal matches the older
	// route wins, then the one whose name is first.
	Created int64  `json:"created,omitempty"`
	Name    string `json:"name,omitempty"`
	// Rules in the order written. Of a TLSRoute, TCPRoute or UDPRoute only the first one's backends are used.
	Rules []Rule `json:"rules,omitempty"`
	// Policies are keys; later ones come before earlier ones, and a rule's before all of them.
	Policies []string `json:"policies,omitempty"`
}

// Parent is one listener that a route is attached to.
type Parent struct {
	Listener string `json:"listener"`
	// Hostnames are the route's own that have hosts in common with the listener's: exact, "*.example.com", or "" for all.
	// They may be wider than the listener's, which has been found by then: of two routes the one whose own hostname is more
	// specific comes first, not the older one. None: the route gets nothing from this listener. TCP and UDP: [""].
	Hostnames []string `json:"hostnames,omitempty"`
}

// Rule is one rule of a route.
type Rule struct {
	Name string `json:"name,omitempty"`
	// Matches: any of them suffices. None match everything.
	Matches []Match  `json:"matches,omitempty"`
	Filters []Filter `json:"filters,omitempty"`
	// Invalid is why the rule can't be served, such as an unknown filter; requests that it wins get 500.
	Invalid string `json:"invalid,omitempty"`
	// Respond is the status that requests get at once, in place of a backend's answer; 0 is none. Policies apply.
	Respond  int               `json:"respond,omitempty"`
	Backends []WeightedBackend `json:"backends,omitempty"` // none, and no redirect: 500 (HTTP, gRPC)
	Timeouts Timeouts          `json:"timeouts,omitzero"`
	Retry    *Retry            `json:"retry,omitempty"`
	Session  *Session          `json:"session,omitempty"`
	Policies []string          `json:"policies,omitempty"` // keys; later ones come before earlier ones
}

// Match is what a request must have: all that is set.
type Match struct {
	Path    *PathMatch   `json:"path,omitempty"`
	GRPC    *GRPCMatch   `json:"grpc,omitempty"` // instead of Path
	Method  string       `json:"method,omitempty"`
	Headers []ValueMatch `json:"headers,omitempty"`
	Query   []ValueMatch `json:"query,omitempty"`
	Cookies []ValueMatch `json:"cookies,omitempty"` // of Ingress canaries; they count after headers, before query
}

// PathKind tells how a path is compared.
type PathKind string

// The ways to compare a path. A prefix is one of whole elements: "/a" has "/a/b", not "/ab". A regular expression
// (RE2) must match all of the path. A string prefix has "/a" match "/ab" (Ingress's ImplementationSpecific); it ranks
// with prefixes by its length, after a prefix of the same.
const (
	PathExact        PathKind = "Exact"
	PathPrefix       PathKind = "Prefix"
	PathRegex        PathKind = "Regex"
	PathStringPrefix PathKind = "StringPrefix"
)

// PathMatch compares a request's path, without its query.
type PathMatch struct {
	Kind  PathKind `json:"kind"`
	Value string   `json:"value"`
	// CaseInsensitive is for regular expressions of Ingresses.
	CaseInsensitive bool `json:"caseInsensitive,omitempty"`
}

// GRPCMatch compares a gRPC call's service and method; "" matches any.
type GRPCMatch struct {
	Service string `json:"service,omitempty"`
	Method  string `json:"method,omitempty"`
	Regex   bool   `json:"regex,omitempty"`
}

// ValueMatch compares a header or a query parameter. Headers' names have no case; several headers of one name are
// compared as one list, joined by commas. Of several parameters of one name the first counts.
type ValueMatch struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	Regex bool   `json:"regex,omitempty"` // RE2, must match all of the value
}

// Filter is one filter: exactly one of its fields is set. Filters are applied in order.
type Filter struct {
	RequestHeaders  *HeaderEdit `json:"requestHeaders,omitempty"`
	ResponseHeaders *HeaderEdit `json:"responseHeaders,omitempty"`
	Redirect        *Redirect   `json:"redirect,omitempty"`
	Rewrite         *Rewrite    `json:"rewrite,omitempty"`
	Mirror          *Mirror     `json:"mirror,omitempty"`
	CORS            *CORS       `json:"cors,omitempty"`
	// ExternalAuth is a listener's or a backend's. A rule's is a policy of it, which takes the place of more general ones.
	ExternalAuth *ExternalAuth `json:"externalAuth,omitempty"`
}

// HeaderEdit sets (replaces), adds and removes headers.
type HeaderEdit struct {
	Set    []Header `json:"set,omitempty"`
	Add    []Header `json:"add,omitempty"`
	Remove []string `json:"remove,omitempty"`
	// SetTemplates is as Set, and comes after it. A header whose value comes out empty is removed.
	SetTemplates []TemplateHeader `json:"setTemplates,omitempty"`
}

// TemplateHeader is a header whose value is made anew for each request.
type TemplateHeader struct {
	Name  string   `json:"name"`
	Value Template `json:"value"`
}

// Header is a header's name and value.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// PathRewrite replaces a path: all of it by Full or Template, or the matched prefix by Prefix. One of them is set.
type PathRewrite struct {
	Template *Template `json:"template,omitempty"` // with $1 to $9 of the path's regular expression
	Full     *string   `json:"full,omitempty"`
	Prefix   *string   `json:"prefix,omitempty"`
}

// Redirect answers with a Location. What is not set is as requested.
type Redirect struct {
	Scheme   string       `json:"scheme,omitempty"`
	Hostname string       `json:"hostname,omitempty"`
	Port     uint16       `json:"port,omitempty"` // 0: that of Scheme when set, else the listener's
	Path     *PathRewrite `json:"path,omitempty"`
	Status   int          `json:"status,omitempty"` // 0: 302
	// Location is all of the answer's Location header, in place of the above.
	Location Template `json:"location,omitempty"`
}

// Rewrite changes what the backend gets to see.
type Rewrite struct {
	Hostname string       `json:"hostname,omitempty"`
	Path     *PathRewrite `json:"path,omitempty"`
}

// Mirror sends a copy of Numerator of Denominator requests to another backend and ignores its answer.
type Mirror struct {
	Backend     string `json:"backend"`
	Numerator   uint32 `json:"numerator"`
	Denominator uint32 `json:"denominator"` // 0: 100
	Invalid     string `json:"invalid,omitempty"`
	// Hostname is the copy's Host header; "" is the request's own.
	Hostname string `json:"hostname,omitempty"`
	// WithoutBody leaves the request's body out of the copy.
	WithoutBody bool `json:"withoutBody,omitempty"`
}

// CORS answers preflight requests and adds the response headers of the Fetch standard (GEP-1767). An origin is
// "scheme://host[:port]", with "*" for all of it or as the host's first label; "*" alone in the other lists is any.
type CORS struct {
	AllowOrigins     []string `json:"allowOrigins,omitempty"`
	AllowMethods     []string `json:"allowMethods,omitempty"`
	AllowHeaders     []string `json:"allowHeaders,omitempty"`
	ExposeHeaders    []string `json:"exposeHeaders,omitempty"`
	AllowCredentials bool     `json:"allowCredentials,omitempty"`
	// OneLabel has a "*" that is the host's first label stand for exactly one (ingress-nginx), not for one or more.
	OneLabel bool  `json:"oneLabel,omitempty"`
	MaxAge   int32 `json:"maxAge,omitempty"` // seconds; 0 is 5, as in the API
}

// WeightedBackend is one backend of a rule.
type WeightedBackend struct {
	// Backend is a Backend's key.
	Backend string `json:"backend,omitempty"`
	// Weight is its share; 0 gets nothing. When all are 0, requests get 500.
	Weight  uint32   `json:"weight"`
	Filters []Filter `json:"filters,omitempty"`
	// Invalid is why the reference can't be followed; its share of requests gets 500.
	Invalid string `json:"invalid,omitempty"`
}

// Timeouts of a rule; 0 is none.
type Timeouts struct {
	// Request is from the request's head to the response's end, all attempts included: 504 when no response began.
	Request Duration `json:"request,omitempty"`
	// BackendRequest is for one attempt.
	BackendRequest Duration `json:"backendRequest,omitempty"`
	// Unbounded lets a backend be silent for as long as it likes: someone asked for no timeout, in place of not asking.
	Unbounded bool `json:"unbounded,omitempty"`
}

// Retry says when another attempt is made (GEP-1731): when a connection can't be made, when the answer has one of the
// statuses in Codes, and when the connection broke or no answer came in time, if the method is idempotent (RFC 9110
// section 9.2.2). Without a Retry, connections that can't be made are retried twice, on other endpoints.
type Retry struct {
	Codes    []int    `json:"codes,omitempty"`
	Attempts int      `json:"attempts,omitempty"` // retries beyond the first attempt; 0 is none
	Backoff  Duration `json:"backoff,omitempty"`  // at least, before the first retry; doubled with each
	// Never is no retry at all, whatever Attempts is (nginx's proxy_next_upstream off).
	Never bool `json:"never,omitempty"`
	// Idempotent keeps requests of other methods from being sent again once they reached a backend, whatever it answered.
	Idempotent bool `json:"idempotent,omitempty"`
	// Unsafe sends requests of any method again whose connection broke, or that were not answered in time, though the
	// backend may have acted on them (nginx's non_idempotent).
	Unsafe bool `json:"unsafe,omitempty"`
	// NotOnError leaves out connections that can't be made or break, NotOnTimeout what is not there or answered in time.
	NotOnError   bool `json:"notOnError,omitempty"`
	NotOnTimeout bool `json:"notOnTimeout,omitempty"`
	// Within bounds the time in which further attempts may begin; 0 is none.
	Within Duration `json:"within,omitempty"`
}

// SessionKind is where a session's identity is kept.
type SessionKind string

// The kinds of session persistence (GEP-1619).
const (
	SessionCookie SessionKind = "Cookie"
	SessionHeader SessionKind = "Header"
)

// Session keeps a client with one endpoint.
type Session struct {
	Kind SessionKind `json:"kind"`
	// Name of the cookie or header.
	Name string `json:"name"`
	// AbsoluteTimeout ends a session that long after it began; 0 never.
	AbsoluteTimeout Duration `json:"absoluteTimeout,omitempty"`
	// Permanent cookies outlive the client's own session, until AbsoluteTimeout.
	Permanent bool `json:"permanent,omitempty"`
	// Path is the cookie's; "" is "/".
	Path string `json:"path,omitempty"`
	// Domain, SameSite ("Strict", "Lax", "None") and Secure are the cookie's attributes. Secure is also set on TLS.
	Domain   string `json:"domain,omitempty"`
	SameSite string `json:"sameSite,omitempty"`
	Secure   bool   `json:"secure,omitempty"`
	// ChangeOnFailure moves the session when its endpoint can't be reached; else it moves only when that is gone.
	ChangeOnFailure bool `json:"changeOnFailure,omitempty"`
	// PerBackend has weights choose the backend for each request anew; only its endpoint is the session's.
	PerBackend bool `json:"perBackend,omitempty"`
}

// BackendProtocol is what a backend's endpoints speak.
type BackendProtocol string

// The protocols of backends. With TLS set they are spoken inside TLS. "ws" and "wss" are HTTP1.
const (
	HTTP1 BackendProtocol = "HTTP1" // the default
	HTTP2 BackendProtocol = "HTTP2" // with prior knowledge, or by ALPN in TLS: h2c and gRPC
	Raw   BackendProtocol = "Raw"   // TCP and UDP
)

// Backend is where requests go: usually one port of a Service.
type Backend struct {
	// Key is unique in the gateway, such as "Service/shop/cart/80".
	Key      string          `json:"key"`
	Protocol BackendProtocol `json:"protocol,omitempty"`
	// Endpoints is an EndpointSet's key.
	Endpoints string      `json:"endpoints,omitempty"`
	TLS       *BackendTLS `json:"tls,omitempty"` // nil: plain text
	// ProxyProtocol is the version (1 or 2) of the header to begin connections with; 0 is none.
	ProxyProtocol int `json:"proxyProtocol,omitempty"`
	// Invalid is why it must not be used, such as a BackendTLSPolicy without a usable CA: requests get 500.
	Invalid string `json:"invalid,omitempty"`
}

// BackendTLS is a BackendTLSPolicy, and the client certificate that the Gateway has for its backends.
type BackendTLS struct {
	// ServerName is sent as SNI, and the certificate must be for it unless SubjectAltNames are given.
	ServerName      string           `json:"serverName,omitempty"`
	SubjectAltNames []SubjectAltName `json:"subjectAltNames,omitempty"` // any of them suffices
	// CAs in PEM; "" are the system's.
	CAs string `json:"cas,omitempty"`
	// ClientCertificate is a Certificate's key; "" is none.
	ClientCertificate string `json:"clientCertificate,omitempty"`
	// Insecure accepts any certificate: of Ingress' proxy-ssl-verify: off only.
	Insecure bool `json:"insecure,omitempty"`
}

// SubjectAltName is a name that a backend's certificate may have: one of the two.
type SubjectAltName struct {
	Hostname string `json:"hostname,omitempty"` // "*.example.com" in the certificate covers one label
	URI      string `json:"uri,omitempty"`
}

// EndpointSet is the endpoints of a backend. Sets are apart from backends so that their frequent changes are small.
type EndpointSet struct {
	Key       string     `json:"key"`
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// Endpoint is one server.
type Endpoint struct {
	// Address is "ip:port", "[ip]:port", or for ExternalName "name:port", which is resolved when connecting.
	Address string `json:"address"`
	// Terminating endpoints (still serving) finish what they have, and get new requests only when no other is left.
	Terminating bool `json:"terminating,omitempty"`
}

// Certificate is a certificate with its key. Its JSON is as secret as the key.
type Certificate struct {
	Key string `json:"key"` // the resource's key, such as "shop/tls"
	// Chain and PrivateKey are PEM.
	Chain      string `json:"chain"`
	PrivateKey string `json:"privateKey"`
	// OCSP is a DER response to staple.
	OCSP []byte `json:"ocsp,omitempty"`
}

// String leaves the private key out, so that no log can tell it.
func (c Certificate) String() string { return "certificate " + c.Key }

// Format makes every verb safe, %#v included.
func (c Certificate) Format(s fmt.State, _ rune) { fmt.Fprint(s, c.String()) }

// Duration is a time.Duration that is written like "1.5s" in JSON.
type Duration time.Duration

// MarshalJSON writes Go's notation.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON reads Go's notation, of which Gateway API's durations (GEP-2257) are a part.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("a duration is a string such as \"10s\", not %s", b)
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration: write it like 10s or 500ms", s)
	}
	*d = Duration(v)
	return nil
}
