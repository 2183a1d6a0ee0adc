// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"slices"
	"strconv"
	"strings"

	"github.com/weft-net/weft/internal/route"
)

// cors is a route.CORS made ready: GEP-1767, and the Fetch standard's CORS protocol.
type cors struct {
	conf             *route.CORS
	origins          []string // lower case
	methods, headers string
	expose           string
	maxAge           string
	anyMethod        bool
	anyHeader        bool
	anyOrigin        bool
	exposeAll        bool // by name: clients would take "*" for one
}

func compileCORS(c *route.CORS) *cors {
	age := c.MaxAge
	if age == 0 {
		age = 5
	}
	out := &cors{
		conf: c, methods: strings.Join(c.AllowMethods, ", "), headers: strings.Join(c.AllowHeaders, ", "),
		expose: strings.Join(c.ExposeHeaders, ", "), maxAge: strconv.Itoa(int(age)),
		anyMethod: slices.Contains(c.AllowMethods, "*"), anyHeader: slices.Contains(c.AllowHeaders, "*"),
		anyOrigin: slices.Contains(c.AllowOrigins, "*"), exposeAll: c.AllowCredentials && slices.Contains(c.ExposeHeaders, "*"),
	}
	if out.exposeAll {
		out.expose = ""
	}
	for _, o := range c.AllowOrigins {
		out.origins = append(out.origins, withoutPort(strings.ToLower(o)))
	}
	return out
}

// withoutPort leaves out a port that is the scheme's own, which browsers do not send.
func withoutPort(origin string) string {
	switch {
	case strings.HasPrefix(origin, "http://"):
		return strings.TrimSuffix(origin, ":80")
	case strings.HasPrefix(origin, "https://"):
		return strings.TrimSuffix(origin, ":443")
	}
	return origin
}

// allows tells whether an origin is one of those allowed.
func (c *cors) allows(origin string) bool {
	if origin == "" {
		return false
	}
	if c.anyOrigin {
		return true
	}
	origin = withoutPort(strings.ToLower(origin))
	for _, o := range c.origins {
		if o == origin {
			return true
		}
		scheme, host, ok := strings.Cut(o, "://*")
		if !ok {
			continue
		}
		rest, ok := strings.CutPrefix(origin, scheme+"://")
		if !ok {
			continue
		}
		// "*" stands for one or more labels, and for all of the host (with or without a port) when it is alone.
		if host == "" {
			return true
		}
		if labels, ok := strings.CutSuffix(rest, host); ok && labels != "" && !(c.conf.OneLabel && strings.Contains(labels, ".")) {
			return true
		}
	}
	return false
}

// headers gives the fields that an answer to origin gets; preflight ones when method is what such a request asks for.
func (c *cors) fields(origin, method, headers string, preflight bool) (out []field) {
	if !c.allows(origin) {
		return nil
	}
	add := func(name, value string) {
		if value != "" {
			out = append(out, newField(name, value))
		}
	}
	credentials := c.conf.AllowCredentials
	if c.anyOrigin && !credentials {
		add("Access-Control-Allow-Origin", "*")
	} else {
		add("Access-Control-Allow-Origin", origin)
		add("Vary", "Origin")
	}
	if credentials {
		add("Access-Control-Allow-Credentials", "true")
	}
	// With credentials "*" would be taken literally by clients: what was asked for is named, if anything was.
	wild := func(any bool, list, asked string) string {
		switch {
		case !any:
			return list
		case credentials:
			return asked
		}
		return "*"
	}
	if preflight {
		add("Access-Control-Allow-Methods", wild(c.anyMethod, c.methods, method))
		add("Access-Control-Allow-Headers", wild(c.anyHeader, c.headers, headers))
		add("Access-Control-Max-Age", c.maxAge)
	}
	// Clients read it of the request itself only; Gateway API's conformance suite wants it of the preflight, too.
	add("Access-Control-Expose-Headers", c.expose)
	return out
}

// replaceCORS puts the gateway's CORS fields in the place of the endpoint's own.
func (x *exchange) replaceCORS(fields []field) []field {
	var names []byte
	for i := range fields {
		f := &fields[i]
		switch {
		case f.id == fDropped:
		case len(f.name) > 21 && equalFold(f.name[:21], "access-control-allow-") || equalFold(f.name, "access-control-expose-headers"):
			f.id = fDropped
		case x.exposeAll && !equalFold(f.name, "set-cookie"):
			if len(names) > 0 {
				names = append(names, ", "...)
			}
			names = append(names, f.name...)
		}
	}
	fields = append(fields, x.cors...)
	if len(names) > 0 {
		fields = append(fields, field{raw("Access-Control-Expose-Headers"), names, other})
	}
	return fields
}
