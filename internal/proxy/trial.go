// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// Trial decides about requests on tables that nothing serves, by the functions that a Server decides with: for who
// explains what a gateway does.
type Trial struct {
	tables *tables
}

// NewTrial makes a Trial of complete tables. The error is as Server.Apply has it; what can't be compiled does the least.
func NewTrial(u *route.Update) (*Trial, error) {
	t := newTables()
	_, err := t.apply(u, time.Now())
	return &Trial{t}, err
}

// Trying is a request to be decided about.
type Trying struct {
	Listener  string // its key
	Method    string
	Authority string            // the Host field, or :authority
	Path      string            // as the client writes it; "" is "/"
	Query     string            // without "?"
	Fields    map[string]string // other header fields
}

// Decision is what a Server makes of a request.
type Decision struct {
	Path   string       // by which rules are looked for, and which the endpoint gets, but for a rewrite
	Entry  *route.Entry // that wins; nil: none
	Status int          // of the answer where none wins
	Reason string
}

// HostOf gives an authority's host as hostnames are compared: in lower case, without port and the root's dot.
func HostOf(authority string) string { return hostOf(authority) }

// Decide finds the entry that wins for a request, as a Server with these tables does.
func (t *Trial) Decide(in Trying) Decision {
	l := t.tables.listeners[in.Listener]
	if l == nil {
		return Decision{Path: in.Path, Status: http.StatusNotFound, Reason: "no listener has this host"}
	}
	if in.Path == "" {
		in.Path = "/"
	}
	clean, perr := cleanPath([]byte(in.Path))
	if perr != nil {
		return Decision{Path: in.Path, Status: perr.status, Reason: perr.reason}
	}
	x := &exchange{method: in.Method, path: string(clean), query: in.Query, authority: in.Authority, host: hostOf(in.Authority), listener: l}
	for name, value := range in.Fields {
		x.fields = append(x.fields, newField(name, value))
	}
	e, perr := x.match()
	switch {
	case perr != nil:
		return Decision{Path: x.path, Status: perr.status, Reason: perr.reason}
	case e == nil:
		return Decision{Path: x.path, Status: http.StatusNotFound, Reason: "no route matches"}
	}
	return Decision{Path: x.path, Entry: e}
}
