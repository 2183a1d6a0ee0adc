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
	dns, status string
	sources     chan *fakeSource
	stop        context.CancelFunc
	done        chan error
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func run(t *testing.T, config string) *process {
	t.Helper()
	p := &process{dns: freePort(t), status: freePort(t), sources: make(chan *fakeSource, 8), done: make(chan error, 1)}
	d, err := newDaemon(Options{Listen: []string{p.dns}, Status: p.status, ConfigFile: config, Lameduck: 300 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil))},
		func(kinds kube.Kinds, _ prometheus.Registerer) (source, error) {
			s := &fakeSource{kinds: kinds, deltas: make(chan *model.Delta)}
			p.sources <- s
			return s, nil
		})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	go func() { p.done <- d.run(ctx) }()
	t.Cleanup(stop)
	return p
}

func (p *process) ask(t *testing.T, name string) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), dns.TypeA)
	c := &dns.Client{Timeout: 5 * time.Second}
	r, _, err := c.Exchange(m, p.dns)
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
