// SPDX-License-Identifier: Apache-2.0

// Package flowlog says which flows a node's policies dropped or admitted: it keeps the latest events, hands them to
// whoever follows, and serves them on a socket of the node. It decides nothing. It imports the standard library only.
package flowlog

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
)

// Verdict is what became of a flow.
type Verdict string

// The verdicts.
const (
	Dropped  Verdict = "dropped"
	Admitted Verdict = "admitted"
)

// Event is one packet that was dropped, or one new connection that was admitted. Of what is dropped only a few a
// second are reported for each chain of policies; the metrics count all.
type Event struct {
	Time        time.Time `json:"time"`
	Verdict     Verdict   `json:"verdict"`
	Node        string    `json:"node"`                // where it happened
	Direction   string    `json:"direction,omitempty"` // the side whose policies dropped it: "ingress" or "egress"
	Source      End       `json:"source"`
	Destination End       `json:"destination"`
	Protocol    string    `json:"protocol"`
	Port        uint16    `json:"port,omitempty"` // of the destination
	SourcePort  uint16    `json:"sourcePort,omitempty"`

	// Service is the one whose address the client asked, "ns/name"; where the node can't know that, the one that leads
	// to the destination, if there is but one.
	Service string `json:"service,omitempty"`

	Policies []string `json:"policies,omitempty"` // that isolate the pod, or decided: "NetworkPolicy ns/name"
	Reason   string   `json:"reason,omitempty"`   // a sentence
	Chain    string   `json:"chain,omitempty"`    // in the kernel's table
}

// End is one end of a flow.
type End struct {
	Kind      string     `json:"kind"` // "Pod", "Node", or "Outside", of which Name is a domain name, if one is known
	Namespace string     `json:"namespace,omitempty"`
	Name      string     `json:"name,omitempty"`
	Addr      netip.Addr `json:"address"`
}

// String names the end as short as it is clear.
func (e End) String() string {
	switch e.Kind {
	case "Pod":
		return e.Namespace + "/" + e.Name
	case "Node":
		return "node " + e.Name
	case "Outside":
		if e.Name != "" {
			return e.Name
		}
	}
	return e.Addr.String()
}

// Header writes the heading of Print's columns.
func Header(w io.Writer, wide bool) {
	if wide {
		fmt.Fprintf(w, "%-12s %-8s %-7s %-34s %-34s %-10s %-14s %s\n", "TIME", "VERDICT", "SIDE", "SOURCE", "DESTINATION", "PORT", "NODE", "WHY")
		return
	}
	fmt.Fprintf(w, "%-12s %-8s %-7s %-34s %-34s %-10s %s\n", "TIME", "VERDICT", "SIDE", "SOURCE", "DESTINATION", "PORT", "POLICIES")
}

// Print writes an event as a line for a person; a wide one has the node and the whole reason.
func Print(w io.Writer, e *Event, wide bool) {
	port := e.Protocol
	if e.Port != 0 {
		port = fmt.Sprintf("%s/%d", e.Protocol, e.Port)
	}
	to := e.Destination.String()
	if e.Service != "" {
		to += " by svc " + e.Service
	}
	at, side := e.Time.Format("15:04:05.000"), e.Direction
	if side == "" {
		side = "-"
	}
	if wide {
		fmt.Fprintf(w, "%-12s %-8s %-7s %-34s %-34s %-10s %-14s %s\n", at, e.Verdict, side, e.Source, to, port, e.Node, e.Reason)
		return
	}
	why := strings.Join(e.Policies, ", ")
	if why == "" {
		why = e.Reason
	}
	fmt.Fprintf(w, "%-12s %-8s %-7s %-34s %-34s %-10s %s\n", at, e.Verdict, side, e.Source, to, port, why)
}
