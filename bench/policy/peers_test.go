// SPDX-License-Identifier: Apache-2.0

//go:build bench

package policy

import (
	"bufio"
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy/policytest"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var (
	kuberouter = flag.String("kuberouter", "", "the program of bench/policy/kuberouter")
	patience   = flag.Duration("patience", 5*time.Minute, "how long a peer may take for one change")
)

// A peer that looks at everything for each change has a small sample.
const (
	peerSample   = 20
	samplePeriod = 30 * time.Second
	fewest       = 3
)

// TestKubeRouter measures kube-router as TestPolicyCost measures weft.
func TestKubeRouter(t *testing.T) {
	if *results == "" || *kuberouter == "" {
		t.Fatal("-results or -kuberouter is not set: make bench-policy sets them")
	}
	gaveUp := map[string]int{} // by shape: the smallest number of policies that was too much
	peer := &peerRun{Program: versions(t)}
	all := each(t, func(t *testing.T, policies int, shape string) result {
		r := result{Policies: policies, Pods: *pods, Shape: shape}
		if n := gaveUp[shape]; n != 0 && n < policies {
			r.Error = fmt.Sprintf("not tried: %d were too many", n)
		} else if err := r.kubeRouter(t); err != nil {
			t.Logf("kube-router with %d policies, %s: %v", policies, shape, err)
			r.Error, gaveUp[shape] = err.Error(), policies
		}
		return r
	})
	peer.run = finished(t, all)
	record(t, func(d *document) { d.Peer = peer })
}

// versions names kube-router and the programs that it runs.
func versions(t *testing.T) string {
	info, err := buildinfo.ReadFile(*kuberouter)
	if err != nil {
		t.Fatal(err)
	}
	out := "kube-router"
	for _, m := range info.Deps {
		if strings.HasPrefix(m.Path, "github.com/cloudnativelabs/kube-router") {
			out += " " + m.Version
		}
	}
	for _, program := range []string{"iptables", "ipset"} {
		b, err := exec.Command(program, "--version").Output()
		if err != nil {
			t.Fatalf("%s --version: %v; apt-get install %s", program, err, program)
		}
		first, _, _ := strings.Cut(string(b), "\n")
		first, _, _ = strings.Cut(first, ", protocol")
		out += ", " + first
	}
	return out
}

// kubeRouter measures what it can. The error is of the first thing that took too long, or went wrong: what is left are
// figures that are not there.
func (r *result) kubeRouter(t *testing.T) error {
	c := generate(r.Policies, r.Shape)
	node := policytest.NewNode(t)
	p := startPeer(t, node)
	defer p.kill()
	var err error
	if r.FullSync, err = p.change(c.delta); err != nil {
		return err
	}
	if r.Resident, err = p.resident(); err != nil {
		return err
	}
	relabel := func(no func(i int) int) func(i int) (time.Duration, error) {
		return func(i int) (time.Duration, error) {
			d, back := c.relabel(no(i))
			took, err := p.change(d)
			if err == nil {
				_, err = p.change(back)
			}
			return took, err
		}
	}
	for _, s := range []struct {
		of *latency
		f  func(i int) (time.Duration, error)
	}{
		{&r.PodChange, relabel(func(i int) int { return local + i })},
		{&r.LocalChange, relabel(func(i int) int { return 1 + i })},
		{&r.Edit, func(i int) (time.Duration, error) { return p.change(c.edit(r.Policies, r.Shape, i)) }},
	} {
		if *s.of, err = short(s.f); err != nil {
			break // what is in the kernel can be measured all the same
		}
	}
	p.kill() // what it put into the kernel stays, and it changes nothing meanwhile
	w := newWay(t, node, c)
	is := true
	policies := func(with bool) {
		switch {
		case with && !is:
			iptables(t, node, "-I", "FORWARD", "-j", "KUBE-ROUTER-FORWARD")
		case !with && is:
			iptables(t, node, "-D", "FORWARD", "1") // all that it has in FORWARD
		}
		is = with
	}
	r.connect(t, w, policies)
	r.pour(t, w, policies)
	return err
}

// short samples a few changes.
func short(f func(i int) (time.Duration, error)) (latency, error) {
	var all []time.Duration
	for start := time.Now(); len(all) < peerSample && (len(all) < fewest || time.Since(start) < samplePeriod); {
		d, err := f(len(all))
		if err != nil {
			return latency{}, err
		}
		all = append(all, d)
	}
	slices.Sort(all)
	return latency{all[len(all)/2], all[len(all)*99/100], all[len(all)-1]}, nil
}

func iptables(t *testing.T, node *policytest.Node, args ...string) {
	node.Do(t, func() error {
		if out, err := exec.Command("iptables", append([]string{"-w"}, args...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("iptables %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	})
}

// peer is the program at work.
type peer struct {
	cmd  *exec.Cmd
	to   io.WriteCloser
	said bytes.Buffer // complete once gone is closed
	took chan time.Duration
	gone chan struct{}
}

func startPeer(t *testing.T, node *policytest.Node) *peer {
	p := &peer{took: make(chan time.Duration, 1), gone: make(chan struct{})}
	var out io.ReadCloser
	node.Do(t, func() (err error) { // a program starts in its thread's namespace
		at, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		p.cmd = exec.Command(*kuberouter, "-netns", at, "-node", "n1="+policytest.NodeAddr4.String())
		p.cmd.Stderr, p.cmd.SysProcAttr = &p.said, &syscall.SysProcAttr{Setpgid: true}
		if p.to, err = p.cmd.StdinPipe(); err != nil {
			return err
		}
		if out, err = p.cmd.StdoutPipe(); err != nil {
			return err
		}
		return p.cmd.Start()
	})
	go func() {
		defer close(p.gone)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if ns, err := strconv.ParseInt(lines.Text(), 10, 64); err == nil {
				p.took <- time.Duration(ns)
			}
		}
		_ = p.cmd.Wait()
	}()
	return p
}

// kill ends the program with what it runs, if it is not gone already.
func (p *peer) kill() {
	select {
	case <-p.gone:
		return
	default:
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.gone
}

// change hands a change to the program and returns how long it took to be in the kernel.
func (p *peer) change(d *model.Delta) (time.Duration, error) {
	if err := json.NewEncoder(p.to).Encode(objectsOf(d)); err != nil {
		return 0, fmt.Errorf("write to kube-router: %w", err)
	}
	select {
	case took := <-p.took:
		return took, nil
	case <-p.gone:
		return 0, fmt.Errorf("kube-router ended: %s", p.said.String())
	case <-time.After(*patience):
		return 0, fmt.Errorf("a change was not in the kernel after %s", *patience)
	}
}

// resident is the program's memory, in bytes.
func (p *peer) resident() (uint64, error) { return residentOf(strconv.Itoa(p.cmd.Process.Pid)) }

// apiObjects is what the program reads: a change as the API has it.
type apiObjects struct {
	Namespaces      []*corev1.Namespace           `json:"namespaces,omitempty"`
	Pods            []*corev1.Pod                 `json:"pods,omitempty"`
	NetworkPolicies []*networkingv1.NetworkPolicy `json:"networkPolicies,omitempty"`
}

func objectsOf(d *model.Delta) apiObjects {
	var out apiObjects
	for _, ns := range d.Namespaces {
		out.Namespaces = append(out.Namespaces, &corev1.Namespace{ObjectMeta: meta(ns.Meta)})
	}
	for _, p := range d.Pods {
		host := policytest.NodeAddr4
		if p.Node != "n1" {
			host = netip.MustParseAddr("192.0.2.2")
		}
		out.Pods = append(out.Pods, &corev1.Pod{ObjectMeta: meta(p.Meta), Spec: corev1.PodSpec{NodeName: p.Node}, Status: corev1.PodStatus{
			Phase: corev1.PodRunning, HostIP: host.String(), PodIP: p.IPs[0].String(), PodIPs: []corev1.PodIP{{IP: p.IPs[0].String()}},
		}})
	}
	for _, np := range d.NetworkPolicies {
		out.NetworkPolicies = append(out.NetworkPolicies, policyOf(np))
	}
	return out
}

func meta(m model.Meta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Name.Namespace, Name: m.Name.Name, Labels: m.Labels}
}

// policyOf is the API object of a generated policy, which admits ingress by labels and ports.
func policyOf(np *model.NetworkPolicy) *networkingv1.NetworkPolicy {
	out := &networkingv1.NetworkPolicy{ObjectMeta: meta(np.Meta), Spec: networkingv1.NetworkPolicySpec{
		PodSelector: *labelsOf(&np.PodSelector), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
	}}
	for _, r := range np.IngressFrom {
		var rule networkingv1.NetworkPolicyIngressRule
		for _, p := range r.Peers {
			rule.From = append(rule.From, networkingv1.NetworkPolicyPeer{PodSelector: labelsOf(p.PodSelector), NamespaceSelector: labelsOf(p.NamespaceSelector)})
		}
		for _, p := range r.Ports {
			protocol, port := corev1.Protocol(p.Protocol.String()), intstr.FromInt32(int32(p.Port))
			rule.Ports = append(rule.Ports, networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &port})
		}
		out.Spec.Ingress = append(out.Spec.Ingress, rule)
	}
	return out
}

// labelsOf is a generated selector, which is of labels only.
func labelsOf(s *model.Selector) *metav1.LabelSelector {
	if s == nil {
		return nil
	}
	out := &metav1.LabelSelector{MatchLabels: map[string]string{}}
	for _, r := range *s {
		out.MatchLabels[r.Key] = r.Values[0]
	}
	return out
}
