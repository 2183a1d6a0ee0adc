// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"

	"github.com/weft-net/weft/internal/model"
)

// RuleText is a rule in words, with whom it means now.
type RuleText struct {
	Field string     `json:"field"` // "ingress[0]"
	Text  string     `json:"text"`
	Peers []PeerText `json:"peers,omitempty"` // empty: anyone
}

// PeerText is a peer in words, with the pods that it means now.
type PeerText struct {
	Text string   `json:"text"`
	Pods []string `json:"pods"`
}

// RuleTexts puts a NetworkPolicy's rules of one direction into words.
func (c *Cluster) RuleTexts(np *model.NetworkPolicy, d Direction) []RuleText {
	if !isolatesFor(np, d) {
		return nil
	}
	return c.texts(rulesOfPolicy(np, d), d, false)
}

// ClusterRuleTexts puts a ClusterNetworkPolicy's rules of one direction into words.
func (c *Cluster) ClusterRuleTexts(p *model.ClusterNetworkPolicy, d Direction) []RuleText {
	return c.texts(rulesOfCluster(p, d), d, true)
}

func (c *Cluster) texts(rules []rule, d Direction, actions bool) []RuleText {
	side := "from"
	if d == Egress {
		side = "to"
	}
	var out []RuleText
	for _, r := range rules {
		t := RuleText{Field: r.field, Text: fmt.Sprintf("%s %s", portsText(r.ports), side)}
		if actions {
			t.Text = r.action.String() + " " + t.Text
		}
		if len(r.peers) == 0 {
			t.Text += " anyone"
		}
		for i := range r.peers {
			t.Peers = append(t.Peers, PeerText{r.peers[i].String(), c.podsOf(&r.peers[i])})
		}
		out = append(out, t)
	}
	return out
}

func (c *Cluster) podsOf(t *term) []string {
	out := []string{}
	for n, p := range c.pods {
		if t.kind == ofPods && c.matchesPod(t, p) {
			out = append(out, n.String())
			continue
		}
		for _, a := range podAddrs(p) {
			if t.kind == ofBlock && c.matches(t, Endpoint{Pod: p, Addr: a}) {
				out = append(out, n.String())
				break
			}
		}
	}
	slices.Sort(out)
	return out
}

// Subject tells whether a ClusterNetworkPolicy is about a pod.
func (c *Cluster) Subject(p *model.ClusterNetworkPolicy, pod *model.Pod) bool {
	return c.isSubject(p, pod)
}

// Applying tells which policies have a say about a pod's direction.
func (c *Cluster) Applying(pod *model.Pod, d Direction) Source {
	s := Source{Direction: d, Namespace: pod.Namespace}
	if pod.HostNetwork {
		return s
	}
	for _, p := range c.subjectOf(c.admin, pod, d) {
		s.Cluster = append(s.Cluster, refOfCluster(p))
	}
	for _, np := range c.selecting(pod, d) {
		s.Isolating = append(s.Isolating, refOf(np))
	}
	if len(s.Isolating) == 0 {
		for _, p := range c.subjectOf(c.baseline, pod, d) {
			s.Cluster = append(s.Cluster, refOfCluster(p))
		}
	}
	return s
}
