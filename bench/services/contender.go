// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"time"

	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/nft/servicetable"
	"github.com/weft-net/weft/internal/node"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-base/metrics/legacyregistry"
	utilsysctl "k8s.io/component-helpers/node/util/sysctl"
	kubeproxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/iptables"
	"k8s.io/kubernetes/pkg/proxy/metrics"
	"k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	utiliptables "k8s.io/kubernetes/pkg/util/iptables"
)

// nodeName is the node that forwards; none of the endpoints is on it.
const nodeName = "this-node"

// contender is a Service proxy under test.
type contender interface {
	// load takes in all objects and returns when the kernel has them: how long the contender worked on that by the
	// clock, and how much processor time it used, child processes and the kernel included. Taking in the objects
	// one by one, as they come from the API server, is not counted for anybody.
	load(objects) (clock, cpu time.Duration, err error)

	// change takes in a changed EndpointSlice and returns when the kernel has it: how long that took by the clock,
	// and how long the contender worked.
	change(old, new *discoveryv1.EndpointSlice) (clock, work time.Duration, err error)

	// push takes in a changed EndpointSlice without waiting.
	push(old, new *discoveryv1.EndpointSlice)

	// behind is how long the kernel has been behind the last push; 0 when it has everything.
	behind() time.Duration
}

func newContender(name string) (contender, error) {
	switch name {
	case "weft":
		return newWeft()
	case "kube-proxy-nftables", "kube-proxy-iptables":
		return newKubeProxy(name)
	}
	return nil, fmt.Errorf("no contender %q", name)
}

// weft is the agent's services part.
type weft struct {
	part  *node.Services
	end   func() // ends it; what is in the kernel stays
	queue chan *discoveryv1.EndpointSlice
	state chan time.Time // holds since when there is something undone; zero if there is not
}

func newWeft() (*weft, error) {
	// Shared, or nobody could do the tables the harm that is to be repaired.
	part, err := node.NewServices(node.ServicesConfig{Node: nodeName, Shared: true, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := part.Run(ctx); err != nil {
			panic(err)
		}
	}()
	end := func() {
		stop()
		<-ended
	}
	w := &weft{part: part, end: end, queue: make(chan *discoveryv1.EndpointSlice, 1<<16), state: make(chan time.Time, 1)}
	w.state <- time.Time{}
	return w, nil
}

func (w *weft) load(all objects) (clock, cpu time.Duration, err error) {
	d, err := deltaOf(all)
	if err != nil {
		return 0, 0, err
	}
	runtime.GC()
	before, start := cpuTime(), time.Now()
	err = w.part.Update(context.Background(), d)
	return time.Since(start), cpuTime() - before, err
}

// deltaOf is the first full picture of the objects.
func deltaOf(all objects) (*model.Delta, error) {
	d := &model.Delta{Complete: true, Since: time.Now(), Services: map[model.Name]*model.Service{}, EndpointSlices: map[model.Name]*model.EndpointSlice{},
		Nodes: map[string]*model.Node{nodeName: {Meta: model.Meta{Name: model.Name{Name: nodeName}}}}}
	return d, all(func(svc *corev1.Service, slices []*discoveryv1.EndpointSlice) error {
		s, err := kube.FromService(svc)
		if err != nil {
			return err
		}
		d.Services[s.Name] = s
		for _, sl := range slices {
			m, err := kube.FromEndpointSlice(sl)
			if err != nil {
				return err
			}
			d.EndpointSlices[m.Name] = m
		}
		return nil
	})
}

// restart is what an agent takes that starts, after this one has ended, on a node that has all in its kernel.
func (w *weft) restart(all objects) (time.Duration, error) {
	w.end()
	if err := w.part.Close(); err != nil {
		return 0, err
	}
	d, err := deltaOf(all)
	if err != nil {
		return 0, err
	}
	next, err := node.NewServices(node.ServicesConfig{Node: nodeName, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		return 0, err
	}
	runtime.GC()
	start := time.Now()
	if err := next.Update(context.Background(), d); err != nil {
		return 0, err
	}
	return time.Since(start), next.Close()
}

// repair is how long it takes until the map of Services is full again after somebody else has emptied it.
func (w *weft) repair(services int) (time.Duration, error) {
	other, err := nft.Dial()
	if err != nil {
		return 0, err
	}
	defer func() { _ = other.Close() }()
	set := &nft.Set{Table: nft.Table{Family: nft.IPv4, Name: servicetable.TableName}, Name: "services"}
	var harm nft.Batch
	harm.FlushSet(set)
	start := time.Now()
	if err := other.Commit(&harm); err != nil {
		return 0, err
	}
	for n := 0; n < services; {
		if time.Since(start) > patience {
			return 0, errors.New("not repaired after " + patience.String())
		}
		time.Sleep(time.Millisecond)
		n = 0
		if err := other.Elements(set, func(nft.Elem) { n++ }); err != nil && !errors.Is(err, nft.ErrInterrupted) {
			return 0, err
		}
	}
	return time.Since(start), nil
}

func (w *weft) change(_, next *discoveryv1.EndpointSlice) (clock, work time.Duration, err error) {
	start := time.Now()
	m, err := kube.FromEndpointSlice(next)
	if err != nil {
		return 0, 0, err
	}
	err = w.part.Update(context.Background(), &model.Delta{Complete: true, Since: start, EndpointSlices: map[model.Name]*model.EndpointSlice{m.Name: m}})
	took := time.Since(start)
	return took, took, err
}

func (w *weft) push(_, next *discoveryv1.EndpointSlice) {
	since := <-w.state
	if since.IsZero() {
		since = time.Now()
		go w.drain()
	}
	w.queue <- next
	w.state <- since
}

// drain is the agent's loop: what is queued is merged, then done.
func (w *weft) drain() {
	runtime.LockOSThread()
	for {
		d := &model.Delta{Complete: true, Since: time.Now(), EndpointSlices: map[model.Name]*model.EndpointSlice{}}
		<-w.state
		for more := true; more; {
			select {
			case s := <-w.queue:
				m, err := kube.FromEndpointSlice(s)
				if err != nil {
					panic(err)
				}
				d.EndpointSlices[m.Name] = m
			default:
				more = false
			}
		}
		if len(d.EndpointSlices) == 0 {
			w.state <- time.Time{}
			return
		}
		w.state <- time.Now()
		if err := w.part.Update(context.Background(), d); err != nil {
			panic(err)
		}
	}
}

func (w *weft) behind() time.Duration {
	since := <-w.state
	w.state <- since
	if since.IsZero() {
		return 0
	}
	return time.Since(since)
}

// proxier is what both of kube-proxy's proxiers are.
type proxier interface {
	OnServiceAdd(*corev1.Service)
	OnServiceSynced()
	OnEndpointSliceAdd(*discoveryv1.EndpointSlice)
	OnEndpointSliceUpdate(old, new *discoveryv1.EndpointSlice)
	OnEndpointSlicesSynced()
	SyncLoop()
}

// kubeProxy is one of them.
type kubeProxy struct {
	proxier
	pushed time.Time
	syncs  uint64
}

func newKubeProxy(name string) (*kubeProxy, error) {
	cfg := &kubeproxyconfig.KubeProxyConfiguration{
		// kube-proxy's defaults (pkg/proxy/apis/config/v1alpha1).
		SyncPeriod: metav1.Duration{Duration: 30 * time.Second}, MinSyncPeriod: metav1.Duration{Duration: time.Second},
		IPTables: kubeproxyconfig.KubeProxyIPTablesConfiguration{MasqueradeBit: ptr(int32(14)), LocalhostNodePorts: ptr(false)},
		NFTables: kubeproxyconfig.KubeProxyNFTablesConfiguration{MasqueradeBit: ptr(int32(14))},
	}
	detect := proxyutil.NewDetectLocalByCIDR("10.128.0.0/9")
	ctx := context.Background()
	var p proxier
	var err error
	if name == "kube-proxy-nftables" {
		metrics.RegisterMetrics(kubeproxyconfig.ProxyModeNFTables)
		p, err = nftables.NewProxier(ctx, cfg, corev1.IPv4Protocol, detect, nodeName, net.ParseIP("192.168.1.1"), nil, nil, false)
	} else {
		metrics.RegisterMetrics(kubeproxyconfig.ProxyModeIPTables)
		ipt := utiliptables.New(utiliptables.ProtocolIPv4)
		p, err = iptables.NewProxier(ctx, cfg, corev1.IPv4Protocol, ipt, utilsysctl.New(), detect, nodeName, net.ParseIP("192.168.1.1"), nil, nil, false)
	}
	if err != nil {
		return nil, err
	}
	go p.SyncLoop()
	return &kubeProxy{proxier: p}, nil
}

func (k *kubeProxy) load(all objects) (clock, cpu time.Duration, err error) {
	err = all(func(s *corev1.Service, slices []*discoveryv1.EndpointSlice) error {
		k.OnServiceAdd(s)
		for _, sl := range slices {
			k.OnEndpointSliceAdd(sl)
		}
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	runtime.GC()
	n, sum := syncs()
	before := cpuTime()
	k.OnServiceSynced()
	k.OnEndpointSlicesSynced()
	clock, err = k.wait(n, sum)
	return clock, cpuTime() - before, err
}

// wait returns when a sync that counts has ended: how long the contender worked.
func (k *kubeProxy) wait(n uint64, before time.Duration) (time.Duration, error) {
	deadline := time.Now().Add(patience)
	for {
		now, sum := syncs()
		if now > n {
			if failed := failures(); failed > 0 {
				return 0, fmt.Errorf("kube-proxy failed to sync %d times", failed)
			}
			k.syncs = now
			return sum - before, nil
		}
		if time.Now().After(deadline) {
			return 0, errors.New("gave up after " + patience.String())
		}
		time.Sleep(time.Millisecond)
	}
}

// patience is how long one sync may take.
const patience = 90 * time.Second

func (k *kubeProxy) change(old, next *discoveryv1.EndpointSlice) (clock, work time.Duration, err error) {
	n, before := syncs()
	start := time.Now()
	k.OnEndpointSliceUpdate(old, next)
	work, err = k.wait(n, before)
	return time.Since(start), work, err
}

func (k *kubeProxy) push(old, next *discoveryv1.EndpointSlice) {
	n, _ := syncs()
	if k.pushed.IsZero() || n > k.syncs {
		k.pushed, k.syncs = time.Now(), n
	}
	k.OnEndpointSliceUpdate(old, next)
}

func (k *kubeProxy) behind() time.Duration {
	if n, _ := syncs(); n > k.syncs || k.pushed.IsZero() {
		return 0
	}
	return time.Since(k.pushed)
}

// failures is how many syncs kube-proxy counts as failed.
func failures() int {
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		panic(err)
	}
	n := 0.0
	for _, f := range families {
		switch f.GetName() {
		case "kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "kubeproxy_sync_proxy_rules_iptables_restore_failures_total":
			for _, m := range f.GetMetric() {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return int(n)
}

// syncs reads kube-proxy's own account of its work: how many syncs have ended, and how long all took.
func syncs() (n uint64, total time.Duration) {
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		panic(err)
	}
	for _, f := range families {
		if f.GetName() != "kubeproxy_sync_proxy_rules_duration_seconds" {
			continue
		}
		for _, m := range f.GetMetric() {
			n += m.GetHistogram().GetSampleCount()
			total += time.Duration(m.GetHistogram().GetSampleSum() * float64(time.Second))
		}
	}
	return n, total
}
