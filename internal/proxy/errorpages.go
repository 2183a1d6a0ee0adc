// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// errorPages is a route.ErrorPages made ready.
type errorPages struct {
	conf *route.ErrorPages
	cell *backendCell
}

// errorPageTimeout bounds how long an error page may take.
const errorPageTimeout = 10 * time.Second

func (t *tables) newErrorPages(c *route.ErrorPages) *errorPages {
	if c == nil || len(c.Statuses) == 0 {
		return nil
	}
	return &errorPages{conf: c, cell: t.cell(c.Backend)}
}

// errorPage lets the policy's backend write the answer in place of one of that status. It is false when there is no
// such policy, or no answer was to be had.
func (x *exchange) errorPage(status int) bool {
	if x.plan == nil || x.plan.errors == nil || x.started || !slices.Contains(x.plan.errors.conf.Statuses, status) {
		return false
	}
	d := x.detail()
	if d.paging {
		return false
	}
	d.paging = true
	defer func() { d.paging = false }()
	p := x.plan.errors
	accept, _ := x.Lookup("accept")
	id, _ := x.Lookup("x-request-id")
	q := &question{method: http.MethodGet, authority: x.asked.authority, path: "/", timeout: errorPageTimeout, fields: x.asIs(false)}
	f := set(q.fields, "X-Code", strconv.Itoa(status))
	f = set(f, "X-Format", accept)
	f = set(f, "X-Original-URI", x.uri())
	f = set(f, "X-Request-ID", id)
	for _, h := range p.conf.Headers {
		f = set(f, h.Name, h.Value)
	}
	q.fields = f
	err := x.ask(p.cell.Load(), q, &pageSink{x: x})
	if err != nil && x.started {
		x.fail("error page: " + err.Error())
	}
	return x.started
}

// pageSink makes an error page the answer to the client of another request.
type pageSink struct{ x *exchange }

func (*pageSink) informational(int, []field) error { return nil }

func (s *pageSink) start(_ *exchange, status int, reason string, fields []field, length int64) error {
	x := s.x
	x.status, x.started = status, true
	if x.method == http.MethodHead && length < 0 {
		length = 0
	}
	return x.sink.start(x, status, reason, x.outgoing(status, fields), length)
}

func (s *pageSink) data(p []byte) error {
	if s.x.method == http.MethodHead {
		return nil
	}
	s.x.sent += int64(len(p))
	return s.x.sink.data(p)
}

func (s *pageSink) flush() error { return s.x.sink.flush() }

func (s *pageSink) end(trailers []field) error { return s.x.sink.end(trailers) }
