// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"time"
)

// Tracer takes spans of requests. It must not block.
type Tracer interface{ Trace(*Span) }

// Span is one request through the gateway, in the terms of W3C Trace Context and OpenTelemetry's HTTP conventions.
type Span struct {
	Trace  [16]byte
	ID     [8]byte
	Parent [8]byte // all zero: the trace begins here

	Began, Ended         time.Time
	Method, Scheme, Host string
	Path                 string // as requested, without query
	Protocol             string // "1.1", "2"
	Status               int
	Client               string // address
	Route, Rule          string // "": none matched
	Backend, Endpoint    string // "": none was asked
	Attempts             int
	Error                string // why the gateway itself answered, or gave up; "": it did not
}

// span is what an exchange remembers of its trace.
type span struct {
	trace      [16]byte
	id, parent [8]byte
	text       [55]byte // its traceparent, for backends
}

// traced begins a span, when the request belongs to a trace that is sampled, or to none and its share says so. What
// comes next gets the gateway's span as its parent.
func (x *exchange) traced() {
	s := &span{}
	sampled := false
	parent, _ := x.Lookup("traceparent")
	if flags, ok := s.read(parent); ok {
		sampled = flags&1 != 0
	} else {
		x.dropField("traceparent")
		x.dropField("tracestate")
		sampled = rand.Float64() < x.srv.conf.TraceShare
		binary.LittleEndian.PutUint64(s.trace[:8], rand.Uint64())
		binary.LittleEndian.PutUint64(s.trace[8:], rand.Uint64()|1) // zero is no trace
	}
	if !sampled {
		return
	}
	binary.LittleEndian.PutUint64(s.id[:], rand.Uint64()|1)
	x.detail().span = s
	x.fields = setField(x.fields, field{name: raw("Traceparent"), value: s.write()})
}

// read takes over the trace and parent of a traceparent field (Trace Context section 3.2).
func (s *span) read(v string) (flags byte, ok bool) {
	if len(v) < 55 || v[2] != '-' || v[35] != '-' || v[52] != '-' || v[:2] == "ff" || len(v) > 55 && (v[:2] == "00" || v[55] != '-') {
		return 0, false
	}
	var version, last [1]byte
	for _, part := range []struct {
		to   []byte
		from string
	}{{version[:], v[:2]}, {s.trace[:], v[3:35]}, {s.parent[:], v[36:52]}, {last[:], v[53:55]}} {
		if !lowerHex(part.from) {
			return 0, false
		}
		if _, err := hex.Decode(part.to, raw(part.from)); err != nil {
			return 0, false
		}
	}
	if s.trace == [16]byte{} || s.parent == [8]byte{} {
		*s = span{}
		return 0, false
	}
	return last[0], true
}

func lowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// write makes the traceparent that names this span as the parent of what comes next.
func (s *span) write() []byte {
	b := append(s.text[:0], "00-"...)
	b = hex.AppendEncode(b, s.trace[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, s.id[:])
	return append(b, "-01"...)
}

// finish gives the span of an exchange that is over to the tracer. Its strings are copies: the exchange's own end with
// it.
func (s *span) finish(x *exchange, took time.Duration) {
	protocol := "1.1"
	if x.major == 2 {
		protocol = "2"
	} else if x.minor == 0 {
		protocol = "1.0"
	}
	out := &Span{
		Trace: s.trace, ID: s.id, Parent: s.parent, Began: x.began, Ended: x.began.Add(took), Method: string(raw(x.method)), Scheme: x.peer.scheme,
		Host: string(raw(x.host)), Path: string(raw(x.asked.path)), Protocol: protocol, Status: x.status, Client: x.source().String(),
		Attempts: x.attempts, Error: x.reason,
	}
	if x.rule != nil {
		out.Route, out.Rule, out.Backend = x.rule.route.Key, x.rule.name(x.entry.Rule), x.backend
	}
	if x.endpoint != nil {
		out.Endpoint = x.endpoint.address
	}
	x.srv.conf.Tracer.Trace(out)
}
