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
	methods, headers string
	expose           string
	maxAge           string
	anyMethod        bool
	anyHeader        bool
	anyOrigin        bool
}

func compileCORS(c *route.CORS) *cors {
	age := c.MaxAge
	if age == 0 {
		age = 5
	}
	return &cors{
		conf: c, methods: strings.Join(c.AllowMethods, ", "), headers: strings.Join(c.AllowHeaders, ", "),
		expose: strings.Join(c.ExposeHeaders, ", "), maxAge: strconv.Itoa(int(age)),
		anyMethod: slices.Contains(c.AllowMethods, "*"), anyHeader: slices.Contains(c.AllowHeaders, "*"),
		anyOrigin: slices.Contains(c.AllowOrigins, "*"),
	}
}

// allows tells whether an origin is one of those allowed.
func (c *cors) allows(origin string) bool {
	if origin == "" {
		return false
	}
	if c.anyOrigin {
		return true
	}
	for _, o := range c.conf.AllowOrigins {
		if strings.EqualFold(o, origin) {
			return true
		}
		scheme, host, ok := strings.Cut(strings.ToLower(o), "://*")
		if !ok {
			continue
		}
		rest, ok := strings.CutPrefix(strings.ToLower(origin), scheme+"://")
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
	// With credentials "*" would be taken literally by clients: name what was asked for.
	wild := func(any bool, list, asked string) string {
		if any && (credentials && asked != "") {
			return asked
		}
		if any {
			return "*"
		}
		return list
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
