// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"fmt"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

func (x *External) operator() string {
	if x.o.Service == (model.Name{}) {
		return "none is configured"
	}
	return x.o.Service.String()
}

// bare tells whether a name is an apex whose objects would have it be an alias.
func (x *External) bare(q *Question) bool {
	z, ok := x.zone(q)
	if !ok {
		return false
	}
	e := x.find(q, z)
	return e != nil && e.bare
}

// Explain answers a question of the world outside and says why. It must not run beside Update.
func (x *External) Explain(q *Question) Explanation {
	e := Explanation{Name: q.String(), Type: typeNames[q.Type]}
	head := make([]byte, headerSize, 4096)
	head = append(head, q.Wire()...)
	head = append(head, byte(q.Type>>8), byte(q.Type), 0, 1)
	at := len(head)
	msg, res := x.Append(head, q, 65535, 0)
	if res.Verdict == NotMine {
		e.Rcode = "REFUSED"
		e.Reason = "it is in none of the zones " + strings.Join(x.o.Zones, ", ") + " (external.zones of the configuration)"
		return e
	}
	e.Rcode = map[uint8]string{noError: "NOERROR", servFail: "SERVFAIL", nxDomain: "NXDOMAIN"}[res.Rcode]
	e.Answer, _ = readRecords(msg, at, int(res.Answer))
	for i := range e.Answer {
		r := &e.Answer[i]
		var owner Question
		if owner.SetName(r.Name) != nil {
			continue
		}
		if from, _, err := x.Sources(&owner); err == nil && len(from) > 0 {
			r.Object = strings.Join(from, ", ")
		}
	}
	from, inVain, _ := x.Sources(q)
	server := x.servers[string(q.Wire())]
	for _, o := range inVain {
		if server {
			e.Notes = append(e.Notes, fmt.Sprintf("%s declares it in vain: a name server's name is for objects of the namespace of external.service (%s)", o, x.operator()))
			continue
		}
		e.Notes = append(e.Notes, o+" declares it, too; "+strings.Join(from, ", ")+" had it first")
	}
	switch {
	case len(e.Answer) > 0:
	case x.bare(q):
		e.Reason = strings.Join(from, ", ") + " leads to a name, and the apex of a zone can't be an alias (RFC 1034 section 3.6.2): give it addresses (" + annotationTarget + ")"
	case server && len(from) == 0:
		e.Reason = "it is the zone's name server, and external.service has no address yet, or is not configured"
	case len(from) > 0:
		e.Reason = strings.Join(from, ", ") + " has no address of that family"
	case res.Rcode == nxDomain:
		e.Reason = "no object of the cluster declares it, or none that does has an address yet"
	default:
		e.Reason = "there are names below it only"
	}
	return e
}
