// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// settings are what annotations say of one Ingress, and, as the defaults of a class, what its ConfigMap says. Slices and
// maps in it are replaced, never written to: copies share them.
type settings struct {
	// Rewrites and redirects.
	rewriteTarget         string
	rewriteRoot           string // "strip" or "replace": what rewrite-target "/" does to a Prefix path
	useRegex              bool
	appRoot               string
	sslRedirect           bool
	forceSSLRedirect      bool
	preserveTrailingSlash bool
	portInRedirects       bool
	permanentRedirect     string
	permanentCode         int
	temporalRedirect      string
	temporalCode          int
	fromToWWW             bool
	redirectCode          int
	noTLSRedirect         []string // path prefixes
	sslPassthrough        bool
	aliases               []string
	hsts                  bool
	hstsMaxAge            int64
	hstsSubdomains        bool
	hstsPreload           bool

	// Canaries.
	canary              bool
	canaryWeight        int
	canaryWeightTotal   int
	canaryHeader        string
	canaryHeaderValue   string
	canaryHeaderPattern string
	canaryCookie        string

	// Sessions.
	affinity              string
	affinityMode          string
	affinityCanary        string
	cookieName            string
	cookiePath            string
	cookieDomain          string
	cookieSameSite        string
	cookieSecure          bool
	cookieMaxAge          int64
	cookieExpires         int64
	cookieChangeOnFailure bool

	// Who may.
	allow          []netip.Prefix
	deny           []netip.Prefix
	blocked        []netip.Prefix
	blockedAgents  []string
	blockedReferer []string
	satisfy        string
	authType       string
	authSecret     string
	authSecretType string
	authRealm      string
	auth           externalAuth
	globalAuth     externalAuth
	useGlobalAuth  bool
	noAuth         []string // path prefixes
	clientSecret   string
	clientVerify   string
	clientDepth    int
	clientError    string
	clientPass     bool
	clientMatchCN  string

	// How much.
	limitRPS         int
	limitRPM         int
	limitConnections int
	limitBurst       int
	limitRate        int64 // KiB/s
	limitRateAfter   int64 // KiB
	limitExempt      []netip.Prefix
	limitStatus      int
	limitConnStatus  int
	bodySize         int64

	// Answers.
	corsEnabled     bool
	corsOrigins     []string
	corsMethods     []string
	corsHeaders     []string
	corsExpose      []string
	corsCredentials bool
	corsMaxAge      int
	errorStatuses   []int
	interceptErrors bool
	defaultBackend  string
	customHeaders   string
	allowedHeaders  []string
	cookieDomains   []route.Replacement
	cookiePaths     []route.Replacement
	redirectFrom    string
	redirectTo      string
	hideHeaders     []string
	addHeaders      string
	accessLog       bool
	mirrorTarget    string
	mirrorHost      string
	mirrorWithBody  bool
	waf             bool
	wafSet          bool
	wafCoreRules    bool
	wafRules        string

	// The backend.
	protocol        string
	upstreamHost    string
	forwardedPrefix string
	serviceUpstream bool
	balance         string
	hashBy          string
	hashSubset      bool
	hashSubsetSize  int
	connectTimeout  time.Duration
	connection      string
	readTimeout     time.Duration
	sendTimeout     time.Duration
	nextUpstream    []string
	nextTries       int
	nextTimeout     time.Duration
	retryAll        bool // retry-non-idempotent
	bufferRequest   *bool
	bufferResponse  bool
	tlsSecret       string
	tlsName         string
	tlsVerify       bool
	proxySetHeaders string

	// The TLS of clients.
	ciphers []string
}

// externalAuth is auth-url and what goes with it.
type externalAuth struct {
	url             string
	method          string
	signin          string
	signinParam     string
	responseHeaders []string
	requestRedirect string
	setHeaders      string // ConfigMap
	cacheKey        string
	cacheFor        []route.CacheEntry
	alwaysSetCookie bool
}

// defaults are ingress-nginx's.
func defaults() settings {
	return settings{
		rewriteRoot: "strip", sslRedirect: true, permanentCode: 301, temporalCode: 302, redirectCode: 308,
		noTLSRedirect: []string{acmeChallenge}, noAuth: []string{acmeChallenge}, useGlobalAuth: true,
		hsts: true, hstsMaxAge: 31536000, hstsSubdomains: true,
		canaryWeightTotal: 100, cookieName: "INGRESSCOOKIE",
		authSecretType: "auth-file", clientVerify: "on", clientDepth: 1,
		auth:       externalAuth{signinParam: "rd", cacheFor: defaultCacheFor},
		globalAuth: externalAuth{signinParam: "rd", cacheFor: defaultCacheFor},
		limitBurst: 5, limitStatus: 503, limitConnStatus: 503, bodySize: 1 << 20,
		corsOrigins:     []string{"*"},
		corsMethods:     []string{"GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"},
		corsHeaders:     []string{"DNT", "Keep-Alive", "User-Agent", "X-Requested-With", "If-Modified-Since", "Cache-Control", "Content-Type", "Range", "Authorization"},
		corsCredentials: true, corsMaxAge: 1728000,
		interceptErrors: true, accessLog: true, mirrorWithBody: true,
		protocol: "HTTP", hashSubsetSize: 3,
		connectTimeout: 5 * time.Second, readTimeout: 60 * time.Second, sendTimeout: 60 * time.Second,
		nextUpstream: []string{"error", "timeout"}, nextTries: 3,
	}
}

// acmeChallenge is where certificates are proved (RFC 8555 section 8.3): reachable without TLS and without
// authentication.
const acmeChallenge = "/.well-known/acme-challenge"

var defaultCacheFor = []route.CacheEntry{{Statuses: []int{200, 202, 401}, For: route.Duration(5 * time.Minute)}}

// config is one ConfigMap, judged: the defaults of the Ingresses of those classes that name it, and what concerns the
// gateway as a whole.
type config struct {
	name model.Name
	set  settings

	crossNamespace   bool
	defaultBackend   string // "namespace/service[:port]"
	defaultCert      string // "namespace/secret"
	forwardedHeaders bool
	trusted          []netip.Prefix
	proxyProtocol    bool
	minTLS, maxTLS   string
	ciphers          []string
	http2            bool
	rejectHandshake  bool

	problems []problem
	denied   []string // mistakes that must not open anything
}

// problem is something to tell an Ingress's owner. Two of the same text are one.
type problem struct {
	reason  string
	message string
	normal  bool
}
