// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"encoding/json"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// QueryEvent is one query and what became of it: a line of the query log and of its stream.
type QueryEvent struct {
	Time     time.Time `json:"time"`
	Client   string    `json:"client"`
	Proto    string    `json:"proto"`
	Name     string    `json:"name"`
	Type     string    `json:"type"`
	Rcode    string    `json:"rcode"`
	Flags    string    `json:"flags,omitempty"` // aa, tc, ad, do
	Answers  int       `json:"answers"`
	Bytes    int       `json:"bytes"`
	Duration string    `json:"duration"`
}

// queryLog hands events to readers who are quick enough; it never holds up an answer.
type queryLog struct {
	listening atomic.Bool // somebody reads: the one thing that the hot path looks at
	mu        sync.Mutex
	readers   map[chan QueryEvent]bool
	toLog     chan QueryEvent
}

// readerQueue is how many events may wait for a reader.
const readerQueue = 4096

func (l *queryLog) subscribe() chan QueryEvent {
	ch := make(chan QueryEvent, readerQueue)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.readers == nil {
		l.readers = make(map[chan QueryEvent]bool)
	}
	l.readers[ch] = true
	l.listening.Store(true)
	return ch
}

func (l *queryLog) unsubscribe(ch chan QueryEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.readers, ch)
	l.listening.Store(len(l.readers) > 0)
}

// logQuery tells the readers of a query, if there are any.
func (s *Server) logQuery(m *query, client clientAddr, udp bool, o *outcome, size int, took time.Duration) {
	if !s.queries.listening.Load() {
		return
	}
	e := QueryEvent{
		Time: time.Now(), Client: client.String(), Proto: "tcp",
		Rcode: dns.RcodeToString[int(o.rcode)], Answers: int(o.answer), Bytes: size, Duration: took.String(),
	}
	if m.qlen > 0 { // else the packet has no question that could be read
		e.Name, e.Type = m.q.String(), dns.Type(m.q.Type).String()
	}
	if udp {
		e.Proto = "udp"
	}
	for _, f := range []struct {
		on   bool
		name string
	}{{o.flags&flagAA != 0, "aa"}, {o.flags&flagTC != 0, "tc"}, {o.flags&flagAD != 0, "ad"}, {m.do, "do"}} {
		if f.on {
			if e.Flags != "" {
				e.Flags += ","
			}
			e.Flags += f.name
		}
	}
	s.queries.mu.Lock()
	defer s.queries.mu.Unlock()
	for ch := range s.queries.readers {
		select {
		case ch <- e:
		default:
			s.stats.logDropped.Add(1)
		}
	}
}

// writeLog writes queries to the log while the configuration wants it.
func (s *Server) writeLog(ch chan QueryEvent) {
	for e := range ch {
		s.log.Info("query", "client", e.Client, "proto", e.Proto, "name", e.Name, "type", e.Type, "rcode", e.Rcode,
			"flags", e.Flags, "answers", e.Answers, "bytes", e.Bytes, "duration", e.Duration)
	}
}

// setLog turns the query log on or off.
func (s *Server) setLog(on bool) {
	l := &s.queries
	switch {
	case on && l.toLog == nil:
		l.toLog = l.subscribe()
		go s.writeLog(l.toLog)
	case !on && l.toLog != nil:
		l.unsubscribe(l.toLog)
		close(l.toLog)
		l.toLog = nil
	}
}

// ServeQueries streams queries as lines of JSON for as long as the client reads, if the configuration allows it.
func (s *Server) ServeQueries(w http.ResponseWriter, r *http.Request) {
	if v := s.view.Load(); v == nil || !v.cfg.StreamQueries {
		http.Error(w, "the stream of queries is off: set streamQueries: true in the configuration", http.StatusForbidden)
		return
	}
	ch := s.queries.subscribe()
	defer s.queries.unsubscribe(ch)
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := http.NewResponseController(w)
	_ = out.Flush()
	enc := json.NewEncoder(w)
	for {
		select {
		case e := <-ch:
			if enc.Encode(e) != nil {
				return
			}
			if len(ch) == 0 && out.Flush() != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}
