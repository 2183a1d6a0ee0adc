// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"slices"

	"github.com/weft-net/weft/internal/route"
)

// match finds the entry that wins for the request.
//
// Endpoints differ in what they take a path for: many read several slashes as one, an escaped slash or a backslash as a
// slash, or leave out what follows a ";". So a path is looked at in that reading too. When another rule has it, and that
// rule keeps somebody out, it is in force, and the endpoint gets the path that it was found by: nobody gets around what a
// path is guarded by through writing it otherwise. Rules that just forward have it, too, where slashes alone make the
// difference and no regular expression means the path as it is written.
func (x *exchange) match() (*route.Entry, *parseError) {
	req := route.Request{Method: x.method, Path: x.path, Query: x.query, Header: x}
	e := x.listener.route(x.host, &req)
	differ, slashes := readings(x.path)
	if !differ {
		return e, nil
	}
	plain, perr := plainPath(x.path)
	if perr != nil {
		return nil, perr
	}
	if plain == x.path {
		return e, nil
	}
	req.Path = plain
	o := x.listener.route(x.host, &req)
	if o == nil || e != nil && o.Target == e.Target {
		return e, nil
	}
	if slashes && (e == nil || e.Regex() == nil) || o.Target.(*rule).keepsOut(x.listener) {
		x.path, x.asked.path = plain, plain
		return o, nil
	}
	return e, nil
}

// keepsOut tells whether the rule does not just forward whatever comes.
func (r *rule) keepsOut(l *listener) bool {
	p := r.planFor(l)
	return p.guards != nil || p.invalid != "" || p.redirect != nil || r.invalid != "" || r.conf.Respond != 0 || r.filters.redirect != nil || r.total == 0 ||
		slices.ContainsFunc(r.backends, func(w weighted) bool { return len(w.filters.external) > 0 })
}

// readings tells whether a path may be read in several ways, and whether slashes are all that they differ by.
func readings(path string) (differ, slashes bool) {
	slashes = true
	for i := range len(path) {
		switch path[i] {
		case '/':
			differ = differ || i > 0 && path[i-1] == '/'
		case '%':
			switch {
			case escapes(path[i:], '/'):
				differ = true
			case escapes(path[i:], '\\'):
				differ, slashes = true, false
			}
		case '\\', ';':
			differ, slashes = true, false
		}
	}
	return differ, slashes
}

// escapes tells whether a text begins with the escape of a byte.
func escapes(s string, c byte) bool {
	return len(s) > 2 && s[0] == '%' && unhex(s[1]) == int(c>>4) && unhex(s[2]) == int(c&0xf)
}

// plainPath gives the path that such an endpoint reads.
func plainPath(path string) (string, *parseError) {
	out := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		c := path[i]
		if escapes(path[i:], '/') || escapes(path[i:], '\\') {
			c, i = '/', i+2
		}
		switch {
		case c == ';': // parameters, up to the segment's end
			for i+1 < len(path) && path[i+1] != '/' && path[i+1] != '\\' && !escapes(path[i+1:], '/') && !escapes(path[i+1:], '\\') {
				i++
			}
		case (c == '/' || c == '\\') && bytes.HasSuffix(out, []byte("/")):
		case c == '\\':
			out = append(out, '/')
		default:
			out = append(out, c)
		}
	}
	clean, perr := cleanPath(out)
	if perr != nil {
		return "", perr
	}
	return string(clean), nil
}

// disguised tells of names that servers with fields in the environment take for those that tell where a request came
// from (RFC 3875 section 4.1.18).
func disguised(name []byte) bool {
	if bytes.IndexByte(name, '_') < 0 || len(name) >= len(byLength) {
		return false
	}
	for _, known := range byLength[len(name)] {
		if sameName(name, raw(known.name)) {
			return true
		}
	}
	return false
}
