// SPDX-License-Identifier: Apache-2.0

package dnsd

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/dnsserver"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// fakeSource hands out what the test gives it.
type fakeSource struct {
	kinds  kube.Kinds
	deltas chan *model.Delta
}

func (f *fakeSource) Run(ctx context.Context) { <-ctx.Done() }
func (f *fakeSource) Next(ctx context.Context) (*model.Delta, error) {
	select {
	case d := <-f.deltas:
		return d, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
func (f *fakeSource) Age() time.Duration { return 3 * time.Second }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never came true: " + what)
		}
	}
}

// process is a daemon that runs.
type process struct {
	dns     []string // the addresses, as they were asked for
	status  string
	sources chan *fakeSource
	stop    context.CancelFunc
	done    chan error
}

const anyPort = "127.0.0.1:0"

func run(t *testing.T, config string) *process {
	t.Helper()
	return runWith(t, Options{Listen: []string{anyPort}, ConfigFile: config})
}

// runWith starts a server, and waits until its ports are open or it has given up.
func runWith(t *testing.T, o Options) *process {
	t.Helper()
	p := &process{sources: make(chan *fakeSource, 8), done: make(chan error, 1)}
	o.Status, o.Lameduck, o.Log = anyPort, 300*time.Millisecond, slog.New(slog.NewTextHandler(io.Discard, nil))
	d, err := newDaemon(o, func(kinds kube.Kinds, _ prometheus.Registerer) (source, error) {
		s := &fakeSource{kinds: kinds, deltas: make(chan *model.Delta)}
		p.sources <- s
		return s, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	open := make(chan struct{})
	d.listening = func(ls []*dnsserver.Listener, status net.Listener) {
		for _, l := range ls {
			p.dns = append(p.dns, l.Addr().String())
		}
		p.status = status.Addr().String()
		close(open)
	}
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	ended := make(chan struct{})
	go func() { p.done <- d.run(ctx); close(ended) }()
	t.Cleanup(stop)
	select {
	case <-open:
	case <-ended:
	}
	return p
}

func (p *process) ask(t *testing.T, name string) *dns.Msg {
	t.Helper()
	return ask(t, p.dns[0], "udp", name)
}

func ask(t *testing.T, at, network, name string) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), dns.TypeA)
	c := &dns.Client{Net: network, Timeout: 5 * time.Second}
	r, _, err := c.Exchange(m, at)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return r
}

func (p *process) get(path string) (int, string) {
	resp, err := http.Get("http://" + p.status + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func webAt(ip string) *model.Delta {
	n := model.Name{Namespace: "shop", Name: "web"}
	return &model.Delta{Complete: true, Since: time.Now(), Services: map[model.Name]*model.Service{
		n: {Meta: model.Meta{Name: n}, ClusterIPs: []netip.Addr{netip.MustParseAddr(ip)}}}}
}

const web = "web.shop.svc.cluster.local"

func TestLifeOfAServer(t *testing.T) {
	p := run(t, "")
	src := <-p.sources
	eventually(t, "it is alive", func() bool { code, _ := p.get("/livez"); return code == 200 })
	if code, body := p.get("/readyz"); code != 503 || !strings.Contains(body, "first full picture") {
		t.Errorf("ready before the first picture: %d %s", code, body)
	}
	if m := p.ask(t, web); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("before the first picture: %s, want SERVFAIL", dns.RcodeToString[m.Rcode])
	}
	src.deltas <- webAt("10.96.0.1")
	eventually(t, "it is ready", func() bool { code, _ := p.get("/readyz"); return code == 200 })
	if m := p.ask(t, web); len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "10.96.0.1" {
		t.Errorf("%v", m.Answer)
	}
	begin := time.Now()
	src.deltas <- webAt("10.96.0.2")
	eventually(t, "the change is seen", func() bool { return p.ask(t, web).Answer[0].(*dns.A).A.String() == "10.96.0.2" })
	t.Logf("a change was visible after %s", time.Since(begin))
	_, metrics := p.get("/metrics")
	for _, want := range []string{"weft_dns_snapshot_age_seconds 3", "coredns_dns_requests_total", "weft_dns_update_duration_seconds_count 2", "coredns_build_info"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %q in the metrics", want)
		}
	}
	// Told to end, it is no longer ready, and answers on for a while.
	p.stop()
	eventually(t, "it is no longer ready", func() bool { code, body := p.get("/readyz"); return code == 503 && strings.Contains(body, "ending") })
	if m := p.ask(t, web); len(m.Answer) != 1 {
		t.Error("no answer while it is ending")
	}
	if err := <-p.done; err != nil {
		t.Error(err)
	}
}

// configMap writes a file the way that the kubelet mounts a ConfigMap, and replaces it so.
type configMap struct {
	t   *testing.T
	dir string
	n   int
}

func (c *configMap) write(text string) string {
	c.t.Helper()
	c.n++
	data := fmt.Sprintf("..v%d", c.n)
	must := func(err error) {
		if err != nil {
			c.t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(c.dir, data), 0o755))
	must(os.WriteFile(filepath.Join(c.dir, data, "dns.yaml"), []byte(text), 0o644))
	must(os.Symlink(data, filepath.Join(c.dir, "..data_tmp")))
	must(os.Rename(filepath.Join(c.dir, "..data_tmp"), filepath.Join(c.dir, "..data")))
	path := filepath.Join(c.dir, "dns.yaml")
	if c.n == 1 {
		must(os.Symlink(filepath.Join("..data", "dns.yaml"), path))
	}
	return path
}

func TestConfigurationChanges(t *testing.T) {
	cm := &configMap{t: t, dir: t.TempDir()}
	p := run(t, cm.write("ttl: 7s\n"))
	src := <-p.sources
	src.deltas <- webAt("10.96.0.1")
	ttl := func() uint32 {
		m := p.ask(t, web)
		if len(m.Answer) != 1 {
			t.Fatalf("the name was not there for a moment: %v", m)
		}
		return m.Answer[0].Header().Ttl
	}
	eventually(t, "the first configuration holds", func() bool { m := p.ask(t, web); return len(m.Answer) == 1 && m.Answer[0].Header().Ttl == 7 })
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var asked atomic.Int64
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				ttl()
				asked.Add(1)
			}
		}
	})
	for i := range 5 {
		cm.write(fmt.Sprintf("ttl: %ds\n", 10+i))
		eventually(t, "a change is taken", func() bool { return ttl() == uint32(10+i) })
	}
	cm.write("ttl: never\n")
	eventually(t, "a bad one is counted", func() bool { _, m := p.get("/metrics"); return strings.Contains(m, "coredns_reload_failed_total 1") })
	if ttl() != 14 {
		t.Error("a bad configuration changed something")
	}
	// Verified pod names need pods: they are watched then, and until all are known nothing changes.
	cm.write("pods: verified\nttl: 20s\n")
	next := <-p.sources
	if next.kinds&kube.Pods == 0 {
		t.Errorf("watches %b", next.kinds)
	}
	if ttl() != 14 {
		t.Error("the new configuration holds before its picture is complete")
	}
	d := webAt("10.96.0.1")
	n := model.Name{Namespace: "shop", Name: "p"}
	d.Pods = map[model.Name]*model.Pod{n: {Meta: model.Meta{Name: n}, IPs: []netip.Addr{netip.MustParseAddr("10.1.0.1")}}}
	next.deltas <- d
	eventually(t, "it holds then", func() bool { return ttl() == 20 })
	for name, want := range map[string]int{"10-1-0-1.shop.pod.cluster.local": 1, "10-1-0-2.shop.pod.cluster.local": 0} {
		if m := p.ask(t, name); len(m.Answer) != want {
			t.Errorf("%s: %v", name, m.Answer)
		}
	}
	close(stop)
	wg.Wait()
	if asked.Load() == 0 {
		t.Error("nobody asked meanwhile")
	}
	p.stop()
	if err := <-p.done; err != nil {
		t.Error(err)
	}
}

// The port for what the node brings untracked answers over UDP, and nobody listens there over TCP.
func TestListenNode(t *testing.T) {
	p := runWith(t, Options{Listen: []string{anyPort}, ListenNode: []string{anyPort}})
	(<-p.sources).deltas <- webAt("10.96.0.1")
	eventually(t, "it is ready", func() bool { code, _ := p.get("/readyz"); return code == 200 })
	for _, at := range p.dns {
		if m := ask(t, at, "udp", web); len(m.Answer) != 1 {
			t.Errorf("%s: %v", at, m)
		}
	}
	if m := ask(t, p.dns[0], "tcp", web); len(m.Answer) != 1 {
		t.Errorf("over TCP: %v", m)
	}
	if c, err := net.Dial("tcp", p.dns[1]); err == nil {
		c.Close()
		t.Errorf("somebody listens at %s over TCP", p.dns[1])
	}
}

// Names for the outside world come from Services, Ingresses and routes, and outlive a change of configuration.
func TestExternalNames(t *testing.T) {
	cm := &configMap{t: t, dir: t.TempDir()}
	p := runWith(t, Options{Listen: []string{anyPort}, ListenExternal: []string{anyPort}, ConfigFile: cm.write("ttl: 7s\n")})
	src := <-p.sources
	src.deltas <- webAt("10.96.0.1")
	if unwanted := kube.Nodes | kube.Ingresses | kube.GatewayNames; src.kinds&unwanted != 0 {
		t.Errorf("without zones it watches %b", src.kinds&unwanted)
	}
	cm.write("external: {zones: [example.com]}\n")
	src = <-p.sources
	if wanted := kube.Nodes | kube.Ingresses | kube.GatewayNames; src.kinds&wanted != wanted {
		t.Errorf("with zones it watches only %b of %b", src.kinds&wanted, wanted)
	}
	name := func(n string) model.Name { return model.Name{Namespace: "shop", Name: n} }
	d := webAt("10.96.0.1")
	d.Services[name("np")] = &model.Service{Meta: model.Meta{Name: name("np"), Annotations: map[string]string{"external-dns.alpha.kubernetes.io/hostname": "np.example.com"}}, Type: model.NodePort, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.7")}}
	d.Nodes = map[string]*model.Node{"n1": {Meta: model.Meta{Name: model.Name{Name: "n1"}}, Ready: true, ExternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}}
	d.Ingresses = map[model.Name]*model.Ingress{name("front"): {Meta: model.Meta{Name: name("front")},
		Rules: []model.IngressRule{{Host: "front.example.com"}}, Status: []model.IngressAddress{{IP: "192.0.2.8"}}}}
	src.deltas <- d
	outer := p.dns[len(p.dns)-1]
	at := func(n string) string {
		if m := ask(t, outer, "udp", n); len(m.Answer) == 1 {
			return m.Answer[0].(*dns.A).A.String()
		}
		return ""
	}
	holds := func() bool { return at("np.example.com") == "192.0.2.9" && at("front.example.com") == "192.0.2.8" }
	eventually(t, "the names are there", holds)
	// The next configuration needs nothing else of the cluster: what is known goes on.
	cm.write("external: {zones: [example.com, example.org]}\n")
	eventually(t, "the new zone is served", func() bool { return ask(t, outer, "udp", "example.org").Rcode == dns.RcodeSuccess })
	if !holds() {
		t.Errorf("after a change of configuration: np.example.com is at %q, front.example.com at %q", at("np.example.com"), at("front.example.com"))
	}
	d = &model.Delta{Complete: true, Ingresses: map[model.Name]*model.Ingress{name("front"): nil}}
	src.deltas <- d
	eventually(t, "a name goes with its Ingress", func() bool { return at("front.example.com") == "" })
	if got := at("np.example.com"); got != "192.0.2.9" {
		t.Errorf("the other is at %q", got)
	}
}

func TestBadStart(t *testing.T) {
	cm := &configMap{t: t, dir: t.TempDir()}
	p := run(t, cm.write("colour: red\n"))
	if err := <-p.done; err == nil || !strings.Contains(err.Error(), "colour") {
		t.Errorf("a bad configuration at the start: %v", err)
	}
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	d, err := newDaemon(Options{Listen: []string{taken.LocalAddr().String()}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.run(context.Background()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a port that is taken: %v", err)
	}
}

func TestParseListen(t *testing.T) {
	for in, want := range map[string]string{":53": "[0.0.0.0:53 [::]:53]", "127.0.0.1:5353": "[127.0.0.1:5353]", "[::1]:53": "[[::1]:53]"} {
		if got, err := parseListen(in); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v %v", in, got, err)
		}
	}
	for _, bad := range []string{"53", ":x", "host:53", ""} {
		if got, err := parseListen(bad); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}
