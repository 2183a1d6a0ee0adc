// SPDX-License-Identifier: Apache-2.0

package route

import (
	"fmt"
	"net/netip"
)

// Policy is what requests must pass, and get, beyond a rule's matches and filters. Listeners, routes and rules name
// their policies by key, and they are merged at run time: field by field, a rule's replaces its route's, a route's its
// listener's, and of one list the later one the earlier one. So a changed policy is one resource, however many routes
// it applies to. A key that is named and is not there (yet) fails closed: 503.
//
// Ingress annotations and the policies of weft.dev both compile to it.
type Policy struct {
	Key string `json:"key"`

	// Who may. The checks are made in this order, before the request's body is read.
	Sources      *Sources      `json:"sources,omitempty"`
	BasicAuth    *BasicAuth    `json:"basicAuth,omitempty"`
	ExternalAuth *ExternalAuth `json:"externalAuth,omitempty"`
	// SatisfyAny lets in who passes any one of the three above that are set (nginx's "satisfy any"); otherwise all must
	// be passed.
	SatisfyAny *bool `json:"satisfyAny,omitempty"`

	// How much.
	RateLimits     []RateLimit   `json:"rateLimits,omitempty"`
	Connections    *Connections  `json:"connections,omitempty"`
	MaxRequestBody *int64        `json:"maxRequestBody,omitempty"` // bytes; more is 413; 0 is no limit
	ResponseRate   *ResponseRate `json:"responseRate,omitempty"`

	// What else is asked, or answered. A rule's own filters come first.
	Rewrite  *Rewrite  `json:"rewrite,omitempty"`
	Redirect *Redirect `json:"redirect,omitempty"`

	// What else the answer is.
	ErrorPages *ErrorPages `json:"errorPages,omitempty"`
	HSTS       *HSTS       `json:"hsts,omitempty"`
	Cookies    *Cookies    `json:"cookies,omitempty"`
	Locations  *Locations  `json:"locations,omitempty"`
	// HideHeaders are response headers of backends that clients don't get.
	HideHeaders []string `json:"hideHeaders,omitempty"`

	// How the backend is asked. A rule's own Session, Timeouts and Retry come first.
	Balance  *Balance  `json:"balance,omitempty"`
	Session  *Session  `json:"session,omitempty"`
	Timeouts *Timeouts `json:"timeouts,omitempty"`
	Retry    *Retry    `json:"retry,omitempty"`
	// ConnectTimeout is for one connection to one endpoint; 0 is the gateway's default.
	ConnectTimeout Duration `json:"connectTimeout,omitempty"`
	// ReadTimeout and SendTimeout are the longest silence of a backend while its answer is read, and the longest time
	// that it takes nothing of the request (nginx's proxy_read_timeout, proxy_send_timeout): 504, or the answer is cut
	// off. Upgraded connections obey them too. 0 is the gateway's default.
	ReadTimeout Duration `json:"readTimeout,omitempty"`
	SendTimeout Duration `json:"sendTimeout,omitempty"`
	// Connection is told to HTTP/1.1 backends in the header of that name, "keep-alive" or "close" (ingress-nginx's
	// connection-proxy-header); "" is none, which is keep-alive. With "close" no connection serves a second request.
	Connection string `json:"connection,omitempty"`
	// BufferRequest reads a request's body, up to MaxRequestBody, before a backend is asked (proxy-request-buffering).
	BufferRequest *bool `json:"bufferRequest,omitempty"`
	// BufferResponse lets a backend go before a slow client has read all (proxy-buffering).
	BufferResponse *bool `json:"bufferResponse,omitempty"`

	AccessLog *bool `json:"accessLog,omitempty"` // nil: as the gateway is told
	WAF       *WAF  `json:"waf,omitempty"`

	// Invalid is why the policy can't be enforced; requests get 503, so that a mistake opens nothing.
	Invalid string `json:"invalid,omitempty"`
}

// String leaves passwords' hashes out, so that no log can tell them.
func (p Policy) String() string { return "policy " + p.Key }

// Format makes every verb safe, %#v included.
func (p Policy) Format(s fmt.State, _ rune) { fmt.Fprint(s, p.String()) }

// Template is text with variables in it: $host, $uri, $args, $arg_NAME, $request_uri, $escaped_request_uri, $scheme,
// $request_method, $remote_addr, $server_port, $http_NAME, $cookie_NAME, $request_id and some more (see Variable), and
// $1 to $9, the groups of the rule's regular expression. ${name} delimits a name, "$$" is a dollar sign. ParseTemplate
// tells what is wrong with one.
type Template string

// Sources are the addresses that may (403 else): those in Allow, or all when it is empty, without those in Deny.
type Sources struct {
	Allow []netip.Prefix `json:"allow,omitempty"`
	Deny  []netip.Prefix `json:"deny,omitempty"`
}

// BasicAuth asks for a name and password (RFC 7617); 401 without a right one.
type BasicAuth struct {
	Realm string `json:"realm,omitempty"`
	// Users are lines of htpasswd(5): bcrypt, MD5 (apr1), SHA, crypt. None: nobody may.
	Users string `json:"users,omitempty"`
}

// ExternalAuth asks another server whether a request may pass (GEP-1494): 200 is yes. Answers of 300 to 499 are handed to
// the client as they are, such as a redirect to where one logs in; other successes are 403, all else is 500. It gets the
// request's headers, and its method and URL in X-Original-Method and X-Original-URL.
type ExternalAuth struct {
	// AuthRequest judges as nginx's auth_request does: 2xx is yes, of 401 and 403 the client gets the status, all else is
	// 500.
	AuthRequest bool `json:"authRequest,omitempty"`
	// Disabled asks nobody, against a more general policy.
	Disabled bool `json:"disabled,omitempty"`
	// Backend is the key of the Backend to ask. "" asks whatever the listener of the request has for Host and Path, as
	// if a client had sent the question, without that route's own ExternalAuth.
	Backend string   `json:"backend,omitempty"`
	Host    string   `json:"host,omitempty"`   // of the Host header; a Template
	Path    Template `json:"path"`             // with its query
	Method  string   `json:"method,omitempty"` // "": the request's own method
	// Signin is where a browser goes on 401 (302). SigninParam is the query parameter, "rd" usually, that tells where it
	// came from; "" is none.
	Signin      Template `json:"signin,omitempty"`
	SigninParam string   `json:"signinParam,omitempty"`
	// RequestHeaders are set on the question; ResponseHeaders are copied from the answer to the backend's request.
	RequestHeaders  []Header `json:"requestHeaders,omitempty"`
	ResponseHeaders []string `json:"responseHeaders,omitempty"`
	// Headers are those of the request that are told besides Authorization; nil: all of them.
	Headers []string `json:"headers,omitempty"`
	// AllResponseHeaders copies all headers of the answer that are not about its body or connection.
	AllResponseHeaders bool `json:"allResponseHeaders,omitempty"`
	// AlwaysSetCookie hands the answer's Set-Cookie to the client whatever the backend's status.
	AlwaysSetCookie bool `json:"alwaysSetCookie,omitempty"`
	// CacheKey is what answers are remembered by; "" is not at all. CacheFor tells how long by status ("" any other).
	CacheKey Template     `json:"cacheKey,omitempty"`
	CacheFor []CacheEntry `json:"cacheFor,omitempty"`
	Timeout  Duration     `json:"timeout,omitempty"` // 0: 60s
	// ForwardBody tells the question with the request's body, of up to so many bytes, MaxForwardBody at most; requests with
	// a larger one are answered 413. 0: the body is not told.
	ForwardBody int `json:"forwardBody,omitempty"`
	// GRPC asks the Backend over gRPC, in Envoy's protocol (envoy.service.auth.v3.Authorization/Check). Of the fields above
	// Headers, which then are all that is told, ForwardBody and Timeout go with it: the answer itself says what becomes of
	// the request, and of what the client gets.
	GRPC bool `json:"grpc,omitempty"`
	// Invalid is why nobody can be asked: requests get 500.
	Invalid string `json:"invalid,omitempty"`
}

// MaxForwardBody is the most bytes of a body that a question of ExternalAuth may tell.
const MaxForwardBody = 1 << 20

// CacheEntry is how long an answer of some statuses is remembered.
type CacheEntry struct {
	Statuses []int    `json:"statuses,omitempty"` // none: any
	For      Duration `json:"for"`
}

// RateLimit is a leaky bucket for each client address (nginx's limit_req with nodelay).
type RateLimit struct {
	// Name tells buckets of one policy apart.
	Name     string         `json:"name,omitempty"`
	Requests uint32         `json:"requests"`
	Per      Duration       `json:"per"`
	Burst    uint32         `json:"burst,omitempty"`  // requests that may come at once beyond the rate
	Status   int            `json:"status,omitempty"` // 0: 503
	Exempt   []netip.Prefix `json:"exempt,omitempty"`
	// Key is what has a bucket; "" is the client's address.
	Key Template `json:"key,omitempty"`
}

// Connections bounds the requests in progress of a client address (nginx's limit_conn).
type Connections struct {
	Max    uint32         `json:"max"`
	Status int            `json:"status,omitempty"` // 0: 503
	Exempt []netip.Prefix `json:"exempt,omitempty"`
}

// ResponseRate slows a response down (nginx's limit_rate).
type ResponseRate struct {
	BytesPerSecond int64 `json:"bytesPerSecond"`
	After          int64 `json:"after,omitempty"` // bytes at full speed first
}

// ErrorPages has a backend write the answer in place of some statuses, whoever set them. It is asked with GET and the
// X-Code, X-Format, X-Original-URI, X-Namespace, X-Ingress-Name, X-Service-Name, X-Service-Port and X-Request-ID
// headers of ingress-nginx; the status of its answer is the client's.
type ErrorPages struct {
	Statuses []int    `json:"statuses"`
	Backend  string   `json:"backend"`
	Headers  []Header `json:"headers,omitempty"` // those that say what the request was for
}

// HSTS is Strict-Transport-Security (RFC 6797) on TLS.
type HSTS struct {
	Disabled          bool  `json:"disabled,omitempty"` // against a more general policy
	MaxAge            int64 `json:"maxAge"`             // seconds
	IncludeSubdomains bool  `json:"includeSubdomains,omitempty"`
	Preload           bool  `json:"preload,omitempty"`
}

// Cookies rewrites the domain and path attributes of backends' cookies (proxy_cookie_domain, proxy_cookie_path).
type Cookies struct {
	Domains []Replacement `json:"domains,omitempty"`
	Paths   []Replacement `json:"paths,omitempty"`
}

// Locations rewrites the beginning of backends' Location and Refresh headers (proxy_redirect).
type Locations struct {
	Replace []Replacement `json:"replace,omitempty"`
}

// Replacement replaces the beginning From, or what the regular expression From matches, by To.
type Replacement struct {
	From  string   `json:"from"`
	Regex bool     `json:"regex,omitempty"`
	To    Template `json:"to"`
}

// BalanceKind is how an endpoint is chosen.
type BalanceKind string

// The ways to choose an endpoint.
const (
	LeastRequest BalanceKind = "LeastRequest" // the better of two; the default
	RoundRobin   BalanceKind = "RoundRobin"
	EWMA         BalanceKind = "EWMA" // the better of two by peak-weighted latency
	Hash         BalanceKind = "Hash" // consistently, by Balance.Key
)

// Balance chooses endpoints.
type Balance struct {
	Kind BalanceKind `json:"kind"`
	// Key of Hash; $remote_addr is ip_hash.
	Key Template `json:"key,omitempty"`
	// SubsetSize is how many endpoints share a key of Hash; 0 and 1 are one.
	SubsetSize int `json:"subsetSize,omitempty"`
}

// WAF is a web application firewall: the OWASP core rule set, and rules of one's own in ModSecurity's language.
type WAF struct {
	Disabled   bool   `json:"disabled,omitempty"`
	DetectOnly bool   `json:"detectOnly,omitempty"`
	CoreRules  bool   `json:"coreRules,omitempty"`
	Rules      string `json:"rules,omitempty"`
}
