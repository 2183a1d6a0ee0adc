// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"reflect"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// TrafficPolicies is the resource of TrafficPolicy objects.
var TrafficPolicies = GroupVersion.WithResource("trafficpolicies")

// TrafficPolicy says what requests must pass, and get, beyond what Gateway API's routes can say. It is a policy of
// GEP-713's inherited kind: attached to a Gateway or ListenerSet, or one of their listeners, it is the default for all
// that comes in there; attached to an HTTPRoute or GRPCRoute, or one of its rules, it comes before those. The merge is
// made field by field of the spec. Of policies with the same target the older comes first, then the name.
//
// Where a policy applies and can't be enforced, say because its Secret is missing, requests get 503.
type TrafficPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   TrafficPolicySpec   `json:"spec"`
	Status TrafficPolicyStatus `json:"status,omitempty"`
}

// TrafficPolicySpec says to what the policy applies, and what it asks for. What is absent is left to policies of less
// precedence, and then is as weft has it.
//
// Fields called templates are text with variables: $host, $request_uri, $remote_addr, $http_NAME and others
// (docs/trafficpolicy.md).
type TrafficPolicySpec struct {
	// What the policy applies to, in its own namespace.
	TargetRefs []TrafficPolicyTarget `json:"targetRefs"`

	// The addresses that may, and may not; others get 403.
	Sources *SourceRanges `json:"sources,omitempty"`

	// A name and password to be asked for (RFC 7617); 401 without a right one.
	BasicAuth *BasicAuth `json:"basicAuth,omitempty"`

	// Another server to be asked whether a request may pass: 2xx is yes, 401 and 403 go to the client, all else is 500.
	ExternalAuth *ExternalAuth `json:"externalAuth,omitempty"`

	// Whether all of sources, basicAuth and externalAuth must be passed, or any of them suffices. Absent means All.
	Satisfy string `json:"satisfy,omitempty"`

	// How many requests may come; each limit has a bucket for each client address, in each of the Gateway's pods.
	RateLimits []RateLimit `json:"rateLimits,omitempty"`

	// How many requests of one client address may be under way at a time, in each of the Gateway's pods.
	ConnectionLimit *ConnectionLimit `json:"connectionLimit,omitempty"`

	// What is done with bodies of requests.
	RequestBody *RequestBody `json:"requestBody,omitempty"`

	// What is done with bodies of responses.
	ResponseBody *ResponseBody `json:"responseBody,omitempty"`

	// What backends get to see in place of the request's own host and path, where the route rule has no URLRewrite.
	Rewrite *TemplateRewrite `json:"rewrite,omitempty"`

	// A redirect in place of a backend's answer, where the route rule has no RequestRedirect.
	Redirect *TemplateRedirect `json:"redirect,omitempty"`

	// Where the answers of some statuses come from in place of backends and the gateway itself.
	ErrorPages *ErrorPages `json:"errorPages,omitempty"`

	// Strict-Transport-Security (RFC 6797) on HTTPS.
	StrictTransportSecurity *StrictTransportSecurity `json:"strictTransportSecurity,omitempty"`

	// Headers of backends' responses that clients do not get.
	HideHeaders []string `json:"hideHeaders,omitempty"`

	// How the domains and paths of backends' cookies are rewritten.
	Cookies *CookieRewrites `json:"cookies,omitempty"`

	// How the beginnings of backends' Location and Refresh headers are rewritten; the first that fits counts.
	Locations []Replacement `json:"locations,omitempty"`

	// How endpoints are chosen. Absent means LeastRequest.
	LoadBalancing *LoadBalancing `json:"loadBalancing,omitempty"`

	// Keeps a client with one endpoint by a cookie. A route rule's own sessionPersistence comes before it.
	SessionCookie *SessionCookie `json:"sessionCookie,omitempty"`

	// How long backends may take. A route rule's own timeouts come before the first two.
	Timeouts *BackendTimeouts `json:"timeouts,omitempty"`

	// When another attempt is made. A route rule's own retry comes before it.
	Retry *BackendRetry `json:"retry,omitempty"`

	// Whether requests are logged, where the gateway has an access log.
	AccessLog *bool `json:"accessLog,omitempty"`

	// A web application firewall that looks at requests.
	Firewall *Firewall `json:"firewall,omitempty"`
}

// TrafficPolicyTarget is an object that a policy applies to, or a part of it.
type TrafficPolicyTarget struct {
	// The API group of the object.
	Group string `json:"group"`

	// The kind of the object.
	Kind string `json:"kind"`

	// The name of the object.
	Name string `json:"name"`

	// The name of a listener of a Gateway or ListenerSet, or of a rule of a route. Absent means all of the object.
	SectionName string `json:"sectionName,omitempty"`
}

// SourceRanges are addresses in CIDR notation.
type SourceRanges struct {
	// The addresses that may. Absent means all.
	Allow []string `json:"allow,omitempty"`

	// The addresses that may not, of those.
	Deny []string `json:"deny,omitempty"`
}

// BasicAuth asks for a name and password.
type BasicAuth struct {
	// What the password is for, as browsers show it.
	Realm string `json:"realm,omitempty"`

	// The Secret with the users.
	SecretRef SecretKey `json:"secretRef"`
}

// SecretKey is a value of a Secret in the policy's namespace.
type SecretKey struct {
	// The name of the Secret.
	Name string `json:"name"`

	// The key of lines as htpasswd makes them (bcrypt, MD5, SHA). Absent means auth.
	Key string `json:"key,omitempty"`
}

// ServicePort is a port of a Service in the policy's namespace.
type ServicePort struct {
	// The name of the Service.
	Name string `json:"name"`

	// The number of the Service's port.
	Port int64 `json:"port"`
}

// ExternalAuth asks another server.
type ExternalAuth struct {
	// Asks nobody, against a policy of less precedence.
	Disabled bool `json:"disabled,omitempty"`

	// The Service to ask. Absent means whatever the same listener has for host and path.
	BackendRef *ServicePort `json:"backendRef,omitempty"`

	// The Host header of the question, a template. Absent means that of the request.
	Host string `json:"host,omitempty"`

	// The path and query of the question, a template. Absent means /.
	Path string `json:"path,omitempty"`

	// The method of the question. Absent means GET.
	Method string `json:"method,omitempty"`

	// Where a browser goes that gets 401, a template.
	SignInURL string `json:"signInURL,omitempty"`

	// The query parameter of signInURL that tells where to come back to. Absent means none.
	SignInParameter string `json:"signInParameter,omitempty"`

	// Headers of the question, set over those of the request.
	RequestHeaders []HeaderTemplate `json:"requestHeaders,omitempty"`

	// Headers of the answer that backends get.
	ResponseHeaders []string `json:"responseHeaders,omitempty"`

	// How long answers are remembered.
	Cache *ExternalAuthCache `json:"cache,omitempty"`

	// How long the answer may take. Absent means 60s.
	Timeout string `json:"timeout,omitempty"`
}

// HeaderTemplate is a header with a value that is made for each request.
type HeaderTemplate struct {
	// The name of the header.
	Name string `json:"name"`

	// The value of the header, a template.
	Value string `json:"value"`
}

// ExternalAuthCache remembers answers.
type ExternalAuthCache struct {
	// What answers are remembered by, a template, such as $http_authorization.
	Key string `json:"key"`

	// How long, by status; the first that fits counts.
	For []ExternalAuthCacheTime `json:"for"`
}

// ExternalAuthCacheTime is how long answers of some statuses are remembered.
type ExternalAuthCacheTime struct {
	// The statuses. Absent means any.
	Statuses []int64 `json:"statuses,omitempty"`

	// How long.
	Duration string `json:"duration"`
}

// RateLimit is a leaky bucket for each key.
type RateLimit struct {
	// Tells several limits apart.
	Name string `json:"name,omitempty"`

	// How many requests may come in the time.
	Requests int64 `json:"requests"`

	// The time.
	Per string `json:"per"`

	// How many requests may come at once beyond the rate.
	Burst int64 `json:"burst,omitempty"`

	// The status for what is too much. Absent means 429.
	Status int64 `json:"status,omitempty"`

	// What has a bucket, a template; requests for which it is empty are not counted. Absent means the client's address.
	Key string `json:"key,omitempty"`

	// Addresses without a limit, in CIDR notation.
	Exempt []string `json:"exempt,omitempty"`
}

// ConnectionLimit bounds requests under way.
type ConnectionLimit struct {
	// How many there may be.
	Max int64 `json:"max"`

	// The status for what is too much. Absent means 503.
	Status int64 `json:"status,omitempty"`

	// Addresses without a limit, in CIDR notation.
	Exempt []string `json:"exempt,omitempty"`
}

// RequestBody says what is done with bodies of requests.
type RequestBody struct {
	// How large they may be; larger ones get 413.
	MaxSize *resource.Quantity `json:"maxSize,omitempty"`

	// Whether they are read before a backend is asked.
	Buffer *bool `json:"buffer,omitempty"`
}

// ResponseBody says what is done with bodies of responses.
type ResponseBody struct {
	// Whether they are taken from backends faster than clients read them.
	Buffer *bool `json:"buffer,omitempty"`

	// How many bytes of each may be sent in a second.
	BytesPerSecond *resource.Quantity `json:"bytesPerSecond,omitempty"`

	// How many bytes are sent at full speed first.
	FullSpeedBytes *resource.Quantity `json:"fullSpeedBytes,omitempty"`
}

// TemplateRewrite replaces what backends get to see.
type TemplateRewrite struct {
	// The host. Absent means that of the request.
	Hostname string `json:"hostname,omitempty"`

	// The path, a template; $1 to $9 are the groups of the RegularExpression that matched. Absent means that of the
	// request.
	Path string `json:"path,omitempty"`
}

// TemplateRedirect sends clients elsewhere.
type TemplateRedirect struct {
	// The Location header, a template.
	Location string `json:"location"`

	// The status. Absent means 302.
	Status int64 `json:"status,omitempty"`
}

// ErrorPages takes answers of some statuses from a Service. It is asked for / with the status in X-Code.
type ErrorPages struct {
	// The statuses, whoever set them.
	Statuses []int64 `json:"statuses"`

	// The Service to ask.
	BackendRef ServicePort `json:"backendRef"`
}

// StrictTransportSecurity tells browsers to use HTTPS only.
type StrictTransportSecurity struct {
	// Tells nothing, against a policy of less precedence.
	Disabled bool `json:"disabled,omitempty"`

	// How many seconds it holds. Absent means a year.
	MaxAgeSeconds *int64 `json:"maxAgeSeconds,omitempty"`

	// Whether it holds for all names below the host's.
	IncludeSubdomains bool `json:"includeSubdomains,omitempty"`

	// Whether browsers may know it before their first visit.
	Preload bool `json:"preload,omitempty"`
}

// CookieRewrites rewrite attributes of backends' cookies; the first that fits counts.
type CookieRewrites struct {
	// Of their domains, without regard to case.
	Domains []Replacement `json:"domains,omitempty"`

	// Of their paths.
	Paths []Replacement `json:"paths,omitempty"`
}

// Replacement replaces a beginning, or what an expression matches.
type Replacement struct {
	// What is replaced.
	From string `json:"from"`

	// Whether from is a regular expression (RE2).
	Regex bool `json:"regex,omitempty"`

	// What takes its place, a template; $1 to $9 are the groups of the expression.
	To string `json:"to"`
}

// LoadBalancing says how endpoints are chosen.
type LoadBalancing struct {
	// How: LeastRequest and EWMA take the better of two by requests under way or by latency, Hash the one that the key
	// belongs to.
	Type string `json:"type"`

	// The key of Hash, a template. Absent means the client's address.
	HashKey string `json:"hashKey,omitempty"`

	// How many endpoints share a key of Hash. Absent means one.
	SubsetSize int64 `json:"subsetSize,omitempty"`
}

// SessionCookie keeps a client with one endpoint.
type SessionCookie struct {
	// The name of the cookie.
	Name string `json:"name"`

	// How long a session lasts. Absent means as long as the browser runs.
	Lifetime string `json:"lifetime,omitempty"`

	// The path of the cookie. Absent means /.
	Path string `json:"path,omitempty"`

	// The domain of the cookie. Absent means the host alone.
	Domain string `json:"domain,omitempty"`

	// The SameSite attribute of the cookie. Absent means Lax.
	SameSite string `json:"sameSite,omitempty"`

	// Whether a session moves while its endpoint fails. Absent means true.
	ChangeOnFailure *bool `json:"changeOnFailure,omitempty"`
}

// BackendTimeouts are how long backends may take.
type BackendTimeouts struct {
	// From a request's head to the response's end, all attempts included.
	Request string `json:"request,omitempty"`

	// For one attempt.
	BackendRequest string `json:"backendRequest,omitempty"`

	// To make a connection. Absent means 5s.
	Connect string `json:"connect,omitempty"`

	// How long a backend may be silent within an answer. Absent means 5m.
	Read string `json:"read,omitempty"`

	// How long a backend may take nothing of the request. Absent means 60s.
	Send string `json:"send,omitempty"`
}

// BackendRetry says when another attempt is made. Connections that can't be made are tried again in any case.
type BackendRetry struct {
	// The statuses that are worth another attempt, besides connections that break.
	Statuses []int64 `json:"statuses,omitempty"`

	// How many attempts are made beyond the first. Absent means one.
	Attempts *int64 `json:"attempts,omitempty"`

	// The wait before the first of them, doubled with each.
	Backoff string `json:"backoff,omitempty"`

	// Whether only requests that may be repeated are (RFC 9110 section 9.2.2). Absent means true.
	IdempotentOnly *bool `json:"idempotentOnly,omitempty"`
}

// Firewall runs rules of ModSecurity's language.
type Firewall struct {
	// Whether what the rules find is refused (Enforce), only logged (Detect), or not looked for (Off).
	Mode string `json:"mode"`

	// Whether the OWASP core rule set is run. Absent means true.
	CoreRules *bool `json:"coreRules,omitempty"`

	// Rules and directives of one's own.
	Rules string `json:"rules,omitempty"`
}

// TrafficPolicyStatus is what the controller made of the policy.
type TrafficPolicyStatus struct {
	// What became of the policy at each of its targets.
	Ancestors []TrafficPolicyAncestor `json:"ancestors,omitempty"`
}

// The conditions of a TrafficPolicy at a target, and their reasons. Accepted says whether it has effect there,
// ResolvedRefs whether the Secrets and Services that it names can be used.
const (
	PolicyConditionAccepted     = "Accepted"
	PolicyConditionResolvedRefs = "ResolvedRefs"

	PolicyReasonAccepted       = "Accepted"
	PolicyReasonInvalid        = "Invalid"        // a field can't be as it is: requests get 503
	PolicyReasonTargetNotFound = "TargetNotFound" // or it is not weft's to serve
	PolicyReasonConflicted     = "Conflicted"     // older policies set all that it sets
	PolicyReasonResolvedRefs   = "ResolvedRefs"
	PolicyReasonRefNotFound    = "RefNotFound" // requests get 503
)

// TrafficPolicyAncestor is what became of a policy at one target.
type TrafficPolicyAncestor struct {
	// The target.
	AncestorRef TrafficPolicyTarget `json:"ancestorRef"`

	// Who says so, which is weft.dev/gateway.
	ControllerName string `json:"controllerName"`

	// Accepted, and ResolvedRefs.
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// TrafficPolicyList is a list of TrafficPolicies.
type TrafficPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []TrafficPolicy `json:"items"`
}

// DeepCopy returns a copy that shares nothing with p.
func (p *TrafficPolicy) DeepCopy() *TrafficPolicy {
	if p == nil {
		return nil
	}
	out := &TrafficPolicy{TypeMeta: p.TypeMeta}
	p.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	copyInto(reflect.ValueOf(&out.Spec).Elem(), reflect.ValueOf(p.Spec))
	copyInto(reflect.ValueOf(&out.Status).Elem(), reflect.ValueOf(p.Status))
	return out
}

// DeepCopyObject implements runtime.Object.
func (p *TrafficPolicy) DeepCopyObject() runtime.Object {
	if p == nil {
		return nil
	}
	return p.DeepCopy()
}

// DeepCopyObject implements runtime.Object.
func (l *TrafficPolicyList) DeepCopyObject() runtime.Object {
	if l == nil {
		return nil
	}
	out := &TrafficPolicyList{TypeMeta: l.TypeMeta}
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	for i := range l.Items {
		out.Items = append(out.Items, *l.Items[i].DeepCopy())
	}
	return out
}

// copyInto copies a value and all that it points to. to has the same type, and shares nothing with from afterwards.
func copyInto(to, from reflect.Value) {
	switch from.Kind() {
	case reflect.Pointer:
		if from.IsNil() {
			return
		}
		if q, ok := from.Interface().(*resource.Quantity); ok {
			c := q.DeepCopy()
			to.Set(reflect.ValueOf(&c))
			return
		}
		to.Set(reflect.New(from.Type().Elem()))
		copyInto(to.Elem(), from.Elem())
	case reflect.Slice:
		if from.IsNil() {
			return
		}
		to.Set(reflect.MakeSlice(from.Type(), from.Len(), from.Len()))
		for i := range from.Len() {
			copyInto(to.Index(i), from.Index(i))
		}
	case reflect.Struct:
		to.Set(from)
		for i := range from.NumField() {
			if from.Type().Field(i).IsExported() {
				copyInto(to.Field(i), from.Field(i))
			}
		}
	default:
		to.Set(from)
	}
}
