// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/dnszone"
)

// searchPath completes names that a resolver asks with a pod's search suffixes. With ndots:5, "example.com" is
// asked as example.com.<namespace>.svc.<domain>, then with each further suffix, and only last as it is: four round
// trips or more, each twice. The server goes through the same suffixes in the same order at the first of these
// questions and answers with a CNAME to the first name that exists, which is what the client would have found.
//
// That is safe where the question can only have come from a search path: see dnszone.Zone.SearchTail. What remains
// is a fully qualified question for an endpoint or port of a Service that does not exist, whose relative part exists
// as a name elsewhere; so it is an option, and off.
type searchPath struct {
	domains []string // on the wire, in lower case: those beyond the cluster's own
}

func newSearchPath(cfg *Config) (*searchPath, error) {
	domains := cfg.SearchPath.Domains
	if domains == nil {
		_, all, err := readResolvConf(resolvConf)
		if err != nil {
			return nil, err
		}
		domains = all
	}
	s := &searchPath{}
	for _, d := range domains {
		w, err := dnszone.PackName(d)
		if err != nil {
			return nil, err
		}
		if len(w) > 1 {
			s.domains = append(s.domains, string(w))
		}
	}
	return s, nil
}

// complete answers a question that does not exist as asked, if it may have come from a search path. msg is the
// answer that it has otherwise.
func (w *worker) complete(v *view, p *packet, msg []byte, limit int, res *dnszone.Result) (done bool, answer []byte) {
	m := &w.m
	octets, ok := v.zone.SearchTail(&m.q)
	if !ok {
		return false, nil
	}
	relative := m.q.Wire()[:octets]
	apex, _ := v.zone.Apex()
	var names []string
	for _, suffix := range slices.Concat([]string{"\x03svc" + apex, apex}, v.search.domains, []string{"\x00"}) {
		if len(relative)+len(suffix) <= 255 {
			names = append(names, string(relative)+suffix)
		}
	}
	// The cluster's own names need nobody else.
	var buf [maxKey + headerSize + 512]byte
	for len(names) > 0 {
		alias := m.start(buf[:0], p.data)
		alias, r := v.zone.AppendAlias(alias, headerSize, &m.q, names[0], limit, w.turn)
		switch {
		case r.Verdict == dnszone.Continue:
			var q dnszone.Question
			q.Read(r.Target)
			if string(q.Wire()) == names[0] {
				// The name itself is not the cluster's: it, and those after it, are upstream's to know.
				w.elsewhere(v, p, msg, limit, names, res)
				return true, nil
			}
			q.Type = m.q.Type
			w.stats.asked(v.zoneCluster, m, p.client, p.udp, len(p.data))
			return true, w.follow(v, p, append(msg[:0], alias...), limit, &q, r.Answer, v.zoneCluster)
		case r.Verdict == dnszone.Answered && r.Rcode != rcodeNXDomain:
			w.stats.asked(v.zoneCluster, m, p.client, p.udp, len(p.data))
			o := outcome{rcode: r.Rcode, flags: flagAA, answer: r.Answer, authority: r.Authority, additional: r.Additional, ede: edeNone}
			if r.Truncated {
				o.flags |= flagTC
			}
			return true, w.finish(v, p, append(msg[:0], alias...), &o, v.zoneCluster, pluginKubernetes)
		}
		names = names[1:]
	}
	return false, nil
}

// elsewhere goes through names that upstreams know, in the background unless the cache has them all.
func (w *worker) elsewhere(v *view, p *packet, msg []byte, limit int, names []string, res *dnszone.Result) {
	w.stats.asked(v.zoneCluster, &w.m, p.client, p.udp, len(p.data))
	wt := w.waiter(p, limit, v.zoneCluster)
	no := append([]byte(nil), msg...)
	nothing := outcome{rcode: res.Rcode, flags: flagAA, answer: res.Answer, authority: res.Authority, additional: res.Additional, ede: edeNone}
	s := w.s
	if names = s.walk(v, wt, names, s.cached); names == nil {
		return
	}
	if len(names) == 0 {
		s.send(wt, no, &nothing, pluginKubernetes)
		return
	}
	s.background.Add(1)
	go func() {
		defer s.background.Done()
		defer func() {
			if r := recover(); r != nil {
				s.panicked(r)
			}
		}()
		if rest := s.walk(v, wt, names, s.ask); rest != nil {
			if len(rest) > 0 {
				s.fail(wt, edeNetworkError)
				return
			}
			s.send(wt, no, &nothing, pluginKubernetes)
		}
	}()
}

// walk looks one name after the other up until one exists and answers with it: then it returns nil. Else it returns
// the names from the first on that look could not tell of.
func (s *Server) walk(v *view, wt *waiter, names []string, look func(*view, *waiter, *dnszone.Question) (*entry, error)) []string {
	for len(names) > 0 {
		var q dnszone.Question
		q.Read([]byte(names[0]))
		q.Type = wt.m.q.Type
		// Names of the cluster and of the configuration need nobody else, nor their aliases.
		msg := appendAliasTo(wt.m.start(nil, wt.asked), names[0])
		o := outcome{answer: 1, ede: edeNone}
		msg, known := v.lead(msg, len(msg)-len(names[0]), &q, &o, wt.limit, wt.turn)
		if known && o.rcode != rcodeNXDomain {
			s.send(wt, msg, &o, pluginHosts)
			return nil
		}
		if known {
			names = names[1:]
			continue
		}
		e, err := look(v, wt, &q)
		if err != nil || (e.rcode != rcodeOK && e.rcode != rcodeNXDomain) {
			return names
		}
		if e.rcode == rcodeOK {
			wt.prefix = sealPrefix(msg, o.answer)
			s.deliver(v, wt, e, e.life > 0 && e.left(s.now()) <= 0)
			return nil
		}
		names = names[1:]
	}
	return []string{}
}

// aliasTTL is that of a CNAME from a search path to a name, in seconds: short, for a Service may take its place.
const aliasTTL = 5

// appendAliasTo adds a CNAME from the question's name to another.
func appendAliasTo(msg []byte, target string) []byte {
	msg = append(msg, 0xc0, headerSize, 0, typeCNAME, 0, classIN, 0, 0, 0, aliasTTL)
	msg = binary.BigEndian.AppendUint16(msg, uint16(len(target)))
	return append(msg, target...)
}

var errNotCached = errors.New("not cached")

func (s *Server) cached(v *view, wt *waiter, q *dnszone.Question) (*entry, error) {
	var key [maxKey]byte
	e := v.cache.get(appendKey(key[:0], q, wt.m.do, wt.m.flags&flagCD != 0))
	// Stale data is as good while it is known that a refresh fails.
	if now := s.now(); e == nil || (e.left(now) <= 0 && (e.refreshed.Load() <= now || !s.holds(v, e))) {
		return nil, errNotCached
	}
	return e, nil
}

// ask looks a question up in the cache and upstream, and waits for the answer.
func (s *Server) ask(v *view, wt *waiter, q *dnszone.Question) (*entry, error) {
	if e, err := s.cached(v, wt, q); err == nil {
		return e, nil
	}
	type result struct {
		e   *entry
		err error
	}
	got := make(chan result, 1)
	var buf [maxKey]byte
	key := appendKey(buf[:0], q, wt.m.do, wt.m.flags&flagCD != 0)
	mine := &waiter{done: func(e *entry, err error) { got <- result{e, err} }}
	a := &asking{name: q.Wire(), typ: q.Type, do: wt.m.do, cd: wt.m.flags&flagCD != 0, fw: v.route(q), old: v.cache.get(key)}
	if !s.launch(v, key, mine, a) {
		s.stats.overloads.Add(1)
		return nil, errNoAnswer
	}
	ctx, cancel := context.WithTimeout(s.ctx, a.fw.timeout+time.Second)
	defer cancel()
	select {
	case r := <-got:
		return r.e, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
