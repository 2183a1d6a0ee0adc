// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
)

// Target is one side of a question.
type Target struct {
	Text     string
	Pods     []*model.Pod // a pod, or those of a workload
	Service  *model.Service
	Addr     netip.Addr
	Node     *model.Node
	DNSName  string
	Outside  bool
	Port     uint16
	PortName string   // of a Service's port
	Request  *Request // of a URL
}

// kinds are the words for kinds that kubectl knows too.
var kinds = map[string]string{
	"po": "pod", "pod": "pod", "pods": "pod", "svc": "service", "service": "service", "services": "service",
	"no": "node", "node": "node", "nodes": "node",
	"deploy": "deployment", "deployment": "deployment", "deployments": "deployment",
	"sts": "statefulset", "statefulset": "statefulset", "statefulsets": "statefulset",
	"ds": "daemonset", "daemonset": "daemonset", "daemonsets": "daemonset",
	"rs": "replicaset", "replicaset": "replicaset", "job": "job", "cj": "cronjob", "cronjob": "cronjob",
}

// ParseTarget reads one side of a question: "outside", an address, KIND/NAME or KIND/NAMESPACE/NAME, NAMESPACE/NAME,
// a name in the namespace, or a DNS name; for a destination with ":PORT" behind it, a number or a Service port's name, or a URL.
// A name alone means, for a source, a pod before a workload; for a destination a Service before both.
func (w *World) ParseTarget(text, namespace string, destination bool) (*Target, error) {
	t := &Target{Text: text}
	rest := text
	if strings.Contains(text, "://") {
		return t, t.readURL(destination)
	}
	if destination {
		rest = t.cutPort(text)
	}
	if rest == "outside" {
		t.Outside = true
		return t, nil
	}
	if a, err := netip.ParseAddr(strings.Trim(rest, "[]")); err == nil {
		t.Addr = a.Unmap()
		return t, nil
	}
	parts := strings.Split(rest, "/")
	kind := ""
	if k, ok := kinds[strings.ToLower(parts[0])]; ok && len(parts) > 1 {
		kind, parts = k, parts[1:]
	}
	name := model.Name{Namespace: namespace, Name: parts[len(parts)-1]}
	switch len(parts) {
	case 1:
	case 2:
		name.Namespace = parts[0]
	default:
		return nil, fmt.Errorf("%q: want KIND/NAMESPACE/NAME, NAMESPACE/NAME or NAME", text)
	}
	if name.Name == "" {
		return nil, fmt.Errorf("%q names nothing", text)
	}
	if kind == "node" {
		t.Node = w.all.Nodes[name.Name]
		if t.Node == nil {
			return nil, fmt.Errorf("there is no node %s", name.Name)
		}
		return t, nil
	}
	if w.find(t, kind, name, destination) {
		if t.Service != nil && kind == "" && len(parts) == 1 {
			t.DNSName = name.Name // it is what a pod looks up
		}
		return t, nil
	}
	if kind == "" && len(parts) == 1 && (strings.Contains(name.Name, ".") || destination) {
		t.DNSName = name.Name
		return t, nil
	}
	if kind == "" {
		kind = "pod, workload or Service"
	}
	return nil, fmt.Errorf("there is no %s %s%s", kind, name, w.similar(name))
}

// readURL reads a destination such as "https://shop.example.com/cart".
func (t *Target) readURL(destination bool) error {
	u, err := url.Parse(t.Text)
	switch {
	case !destination:
		return fmt.Errorf("%q is a URL: connections come from pods, nodes or outside", t.Text)
	case err != nil || u.Hostname() == "":
		return fmt.Errorf("%q is not a URL such as https://shop.example.com/cart", t.Text)
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%q: scheme %q is neither http nor https", t.Text, u.Scheme)
	}
	t.Request = &Request{URL: u, Method: "GET", Headers: map[string]string{}}
	return nil
}

// cutPort takes ":PORT" off the end.
func (t *Target) cutPort(text string) string {
	i := strings.LastIndexByte(text, ':')
	if i < 0 || strings.Contains(text[i:], "]") || strings.Count(text, ":") > 1 && !strings.Contains(text, "]") {
		return text // no port, or an IPv6 address without brackets
	}
	if n, err := strconv.ParseUint(text[i+1:], 10, 16); err == nil {
		t.Port = uint16(n)
	} else {
		t.PortName = text[i+1:]
	}
	return text[:i]
}

func (w *World) find(t *Target, kind string, n model.Name, destination bool) bool {
	pod := func() bool {
		if p := w.all.Pods[n]; p != nil && (kind == "" || kind == "pod") {
			t.Pods = []*model.Pod{p}
		}
		return len(t.Pods) > 0
	}
	svc := func() bool {
		if s := w.all.Services[n]; s != nil && (kind == "" || kind == "service") {
			t.Service = s
		}
		return t.Service != nil
	}
	workload := func() bool {
		for _, k := range []string{"deployment", "statefulset", "daemonset", "replicaset", "replicationcontroller", "job", "cronjob"} {
			if kind != "" && kind != k {
				continue
			}
			for _, p := range w.Workloads[Workload{k, n}] {
				if pod := w.all.Pods[p]; pod != nil {
					t.Pods = append(t.Pods, pod)
				}
			}
			if len(t.Pods) > 0 {
				return true
			}
		}
		return false
	}
	if destination {
		return svc() || pod() || workload()
	}
	return pod() || workload() || svc()
}

// similar proposes what may have been meant.
func (w *World) similar(n model.Name) string {
	var found []string
	for p := range w.all.Pods {
		if p.Name == n.Name || p.Namespace == n.Namespace && strings.HasPrefix(p.Name, n.Name) {
			found = append(found, "pod/"+p.String())
		}
	}
	for s := range w.all.Services {
		if s.Name == n.Name {
			found = append(found, "svc/"+s.String())
		}
	}
	if len(found) == 0 {
		return ""
	}
	slices.Sort(found)
	return " (did you mean " + strings.Join(found[:min(3, len(found))], ", ") + "?)"
}

// endpoints are a target's own ends on the wire, of the pods that can be reached: both families.
func (w *World) endpoints(t *Target) []policy.Endpoint {
	var out []policy.Endpoint
	switch {
	case len(t.Pods) > 0:
		for _, p := range t.Pods {
			out = append(out, w.podEndpoints(p)...)
		}
	case t.Node != nil:
		for _, a := range t.Node.InternalIPs {
			out = append(out, policy.Endpoint{Addr: a, Node: t.Node.Name.Name})
		}
	case t.Addr.IsValid():
		out = append(out, w.Policy.EndpointOf(t.Addr))
	}
	return out
}

func (w *World) podEndpoints(p *model.Pod) []policy.Endpoint {
	if p.HostNetwork {
		var out []policy.Endpoint
		for _, a := range p.IPs {
			out = append(out, policy.Endpoint{Addr: a, Node: p.Node})
		}
		return out
	}
	if len(p.IPs) == 0 {
		return []policy.Endpoint{{Pod: p}}
	}
	var out []policy.Endpoint
	for _, a := range p.IPs {
		out = append(out, policy.Endpoint{Addr: a, Pod: p, Node: ""})
	}
	return out
}
