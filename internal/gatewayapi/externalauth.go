// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"fmt"
	"strings"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/route"
)

// externalAuth is whom a filter has asked whether a request may pass (GEP-1494), over HTTP or in Envoy's protocol of gRPC; c
// is of what has the filter. refusal is why that can't be done as it is written. problem is why its reference can't be
// followed: requests then fail.
//
// A body, of up to so many bytes, is told whole: the API says both that larger ones are rejected and that they are cut, and
// what was cut off would be let through unseen.
func (s *State) externalAuth(c *content, f *gwv1.HTTPExternalAuthFilter, body int) (a *route.ExternalAuth, refusal string, problem *verdict) {
	as := spokenHTTP
	switch f.ExternalAuthProtocol {
	case gwv1.HTTPRouteExternalAuthHTTPProtocol:
		a = &route.ExternalAuth{Host: "$host", Path: "$request_uri", AllResponseHeaders: true, Headers: []string{"Authorization"}}
		if h := f.HTTPAuthConfig; h != nil {
			prefix := strings.ReplaceAll(strings.TrimRight(h.Path, "/"), "$", "$$")
			a.Path = route.Template(prefix) + a.Path
			a.Headers = append(a.Headers, h.AllowedRequestHeaders...)
			if len(h.AllowedResponseHeaders) > 0 {
				a.AllResponseHeaders, a.ResponseHeaders = false, h.AllowedResponseHeaders
			}
		}
	case gwv1.HTTPRouteExternalAuthGRPCProtocol:
		as, a = spokenGRPC, &route.ExternalAuth{GRPC: true}
		if g := f.GRPCAuthConfig; g != nil && len(g.AllowedRequestHeaders) > 0 {
			a.Headers = g.AllowedRequestHeaders
		}
	default:
		return nil, fmt.Sprintf("externalAuth.protocol %q is not supported: HTTP and GRPC are", f.ExternalAuthProtocol), nil
	}
	if body < 0 || body > route.MaxForwardBody {
		return nil, fmt.Sprintf("externalAuth.forwardBody.maxSize: %d is not from 0 to %d bytes", body, route.MaxForwardBody), nil
	}
	a.ForwardBody = body
	id, problem := s.resolve(c, f.BackendRef, as)
	if problem == nil {
		once(&c.backends, id)
		a.Backend = id.key()
		problem = s.unmet(id) // which the Backend knows as well
	}
	if problem != nil {
		problem.message = "externalAuth: " + problem.message
		if a.Backend == "" {
			a.Invalid = problem.message
		}
	}
	return a, "", problem
}
