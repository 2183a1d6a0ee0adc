// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// Expectation is what a packet should meet with, if the kernel does what the model says.
type Expectation string

// The expectations.
const (
	Pass   Expectation = "pass"   // it reaches a server: an answer, or a refusal because nobody listens
	Refuse Expectation = "refuse" // it is refused at once
	Vanish Expectation = "vanish" // it is dropped: nothing comes back
	Either Expectation = "either" // it depends on which endpoint is chosen
)

// Agreement tells whether kernel and model agree.
type Agreement string

// The agreements.
const (
	Agree    Agreement = "agree"
	Disagree Agreement = "disagree"
	Unclear  Agreement = "unclear"
)

// Probe is a question to the kernel: real packets, and what the model expects of them.
type Probe struct {
	Address   netip.AddrPort `json:"address"`
	Protocol  string         `json:"protocol"`
	About     string         `json:"about"` // the object at that address
	Expected  Expectation    `json:"expected"`
	Outcome   string         `json:"outcome,omitempty"` // package probe's word
	Agreement Agreement      `json:"agreement,omitempty"`
	Text      string         `json:"text,omitempty"` // one sentence

	beyond bool // no pod is there: a node's firewall, or whoever is outside the cluster, decides too
	server bool // the pod there is ready
}

// Source is whose network namespace the connection starts in.
func (a *Answer) Source() (pod *model.Pod, node string) { return a.pod, a.node }

// expect notes a question to the kernel about a way that was walked.
func (q *question) expect(at netip.AddrPort, about string, e Expectation, beyond, server bool) {
	if !at.Addr().IsValid() || at.Addr().IsUnspecified() || at.Port() == 0 {
		return
	}
	for i := range q.a.Probes {
		if p := &q.a.Probes[i]; p.Address == at && p.Protocol == q.proto.String() {
			if p.Expected != e {
				p.Expected = Either
			}
			return
		}
	}
	q.a.Probes = append(q.a.Probes, Probe{Address: at, Protocol: q.proto.String(), About: about, Expected: e, beyond: beyond, server: server})
}

// Conclude takes what came back of a probe (package probe's Outcome) and says whether kernel and model agree.
func (p *Probe) Conclude(outcome, detail string) {
	p.Outcome = outcome
	agree := func(yes bool, text string) {
		p.Agreement, p.Text = Agree, text
		if !yes {
			p.Agreement = Disagree
		}
	}
	switch {
	case outcome == "failed":
		p.Agreement, p.Text = Unclear, "no packet could be sent: "+detail
	case p.Expected == Either:
		p.Agreement, p.Text = Unclear, fmt.Sprintf("%s: which endpoint it went to is not known, and they differ", outcome)
	case outcome == "answered":
		agree(p.Expected == Pass, "it was answered")
	case outcome == "refused" && p.Expected == Pass && p.server:
		agree(true, "it was refused: the packet got there, and no process listens on the port")
	case outcome == "refused":
		agree(p.Expected != Vanish, "it was refused")
	case outcome == "unreachable":
		p.Agreement, p.Text = Unclear, "there is no way: "+detail
		if p.Expected == Refuse {
			agree(true, "it was refused")
		}
	case p.Expected == Vanish:
		agree(true, "nothing came back")
	case p.Expected == Refuse:
		agree(false, "nothing came back")
	case p.Protocol == model.UDP.String():
		p.Agreement, p.Text = Unclear, "nothing came back; a UDP server need not answer what it does not know"
	case p.beyond:
		p.Agreement, p.Text = Unclear, "nothing came back; at what is no pod others decide too"
	case !p.server:
		p.Agreement, p.Text = Unclear, "nothing came back, and the pod is not ready"
	default:
		agree(false, "nothing came back")
	}
	if p.Agreement == Disagree {
		a := "it should pass"
		switch p.Expected {
		case Refuse:
			a = "it should be refused"
		case Vanish:
			a = "it should be dropped"
		}
		p.Text += ", but by what the API says " + a
	}
}

// Disagreements are the probes in which the kernel does not do what the model says.
func (a *Answer) Disagreements() []Probe {
	var out []Probe
	for _, p := range a.Probes {
		if p.Agreement == Disagree {
			out = append(out, p)
		}
	}
	return out
}

// probesText writes what the kernel answered.
func probesText(a *Answer) string {
	var b strings.Builder
	for _, p := range a.Probes {
		if p.Outcome == "" {
			continue
		}
		mark := map[Agreement]string{Agree: symbols[OK], Disagree: "✗✗✗", Unclear: symbols[Note]}[p.Agreement]
		fmt.Fprintf(&b, "%s probe    %s %s (%s): %s\n", mark, p.Protocol, p.Address, p.About, p.Text)
	}
	if n := len(a.Disagreements()); n > 0 {
		fmt.Fprintf(&b, "\n*** KERNEL AND MODEL DISAGREE (%s). This is a bug of weft: please report it with the output of the same command and -o json. ***\n", count(n, "probe"))
	}
	return b.String()
}
