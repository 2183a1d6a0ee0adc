// SPDX-License-Identifier: Apache-2.0

package flowlog

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Filter chooses events. What is unset lets all through.
type Filter struct {
	Namespace string       // of either end's pod
	Pod       string       // of either end's pod: its name
	Addr      netip.Prefix // of either end
	Service   string       // that was asked: "name" or "ns/name"
	Policy    string       // among those that dropped it: "name" or "ns/name"
	Verdict   Verdict
	Direction string // "ingress" or "egress"
	Protocol  string // in any case
	Port      uint16 // of the destination
	Since     time.Time
}

// Matches tells whether the filter lets an event through.
func (f *Filter) Matches(e *Event) bool {
	switch {
	case f.Verdict != "" && e.Verdict != f.Verdict,
		f.Direction != "" && e.Direction != f.Direction,
		f.Protocol != "" && !strings.EqualFold(e.Protocol, f.Protocol),
		f.Port != 0 && e.Port != f.Port,
		e.Time.Before(f.Since),
		f.Service != "" && !named(e.Service, f.Service),
		f.Policy != "" && !slices.ContainsFunc(e.Policies, func(p string) bool {
			_, name, _ := strings.Cut(p, " ") // behind the kind
			return named(name, f.Policy)
		}):
		return false
	}
	ends := []End{e.Source, e.Destination}
	if f.Addr.IsValid() && !slices.ContainsFunc(ends, func(end End) bool { return f.Addr.Contains(end.Addr) }) {
		return false
	}
	return f.Namespace == "" && f.Pod == "" || slices.ContainsFunc(ends, func(end End) bool {
		return end.Kind == "Pod" && (f.Namespace == "" || end.Namespace == f.Namespace) && (f.Pod == "" || end.Name == f.Pod)
	})
}

// named tells whether an object's "ns/name" is what somebody means by "name" or "ns/name".
func named(object, want string) bool {
	_, name, ok := strings.Cut(object, "/")
	return object == want || ok && name == want
}

// values is the filter as a request's query.
func (f *Filter) values() url.Values {
	q := url.Values{}
	for k, v := range map[string]string{
		"namespace": f.Namespace, "pod": f.Pod, "service": f.Service, "policy": f.Policy,
		"verdict": string(f.Verdict), "direction": f.Direction, "protocol": f.Protocol,
	} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if f.Addr.IsValid() {
		q.Set("address", f.Addr.String())
	}
	if f.Port != 0 {
		q.Set("port", strconv.Itoa(int(f.Port)))
	}
	if !f.Since.IsZero() {
		q.Set("since", f.Since.Format(time.RFC3339Nano))
	}
	return q
}

// filterOf reads a request's query.
func filterOf(q url.Values) (*Filter, error) {
	f := &Filter{
		Namespace: q.Get("namespace"), Pod: q.Get("pod"), Service: q.Get("service"), Policy: q.Get("policy"),
		Verdict: Verdict(q.Get("verdict")), Direction: q.Get("direction"), Protocol: q.Get("protocol"),
	}
	if s := q.Get("address"); s != "" {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("address: %w", err)
		}
		f.Addr = p
	}
	if s := q.Get("port"); s != "" {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("port: %w", err)
		}
		f.Port = uint16(n)
	}
	if s := q.Get("since"); s != "" {
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return nil, fmt.Errorf("since: %w", err)
		}
		f.Since = t
	}
	return f, nil
}
