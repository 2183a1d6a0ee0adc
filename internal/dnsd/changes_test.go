// SPDX-License-Identifier: Apache-2.0

package dnsd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/dnsserver"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// quiet is a log that nobody reads.
func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// What a source that has been replaced still hands over is not the whole state that its successor is waited for with.
func TestChangesOfAnOldSource(t *testing.T) {
	sources := make(chan *fakeSource, 8)
	d, err := newDaemon(Options{Log: quiet()}, func(kinds kube.Kinds, _ prometheus.Registerer) (source, error) {
		s := &fakeSource{kinds: kinds, deltas: make(chan *model.Delta)}
		sources <- s
		return s, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.server.Close()
	defer d.outer.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	changes, configs := make(chan change), make(chan []byte)
	parse := func(text string) *dnsserver.Config {
		cfg, err := d.parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	if err := d.begin(ctx, parse("{}"), changes); err != nil {
		t.Fatal(err)
	}
	first := d.source.Load()
	done := make(chan struct{})
	go func() { defer close(done); d.follow(ctx, changes, configs) }()
	l, err := d.server.Listen(ctx, netip.MustParseAddrPort(anyPort), 1)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- l.Serve() }()
	p := &process{dns: []string{l.Addr().String()}}
	(<-sources).deltas <- webAt("10.96.0.1")
	eventually(t, "the first picture is in force", func() bool { return len(p.ask(t, web).Answer) == 1 })
	configs <- []byte("pods: verified")
	second := <-sources
	partial := &model.Delta{Complete: true}
	changes <- change{delta: partial, from: first}
	// A configuration that comes meanwhile does not bring the old picture into force either.
	configs <- []byte("{pods: verified, ttl: 9s}")
	whole := webAt("10.96.0.2")
	n := model.Name{Namespace: "shop", Name: "p"}
	whole.Pods = map[model.Name]*model.Pod{n: {Meta: model.Meta{Name: n}, IPs: []netip.Addr{netip.MustParseAddr("10.1.0.1")}}}
	if m := p.ask(t, web); len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "10.96.0.1" || m.Answer[0].Header().Ttl != 5 {
		t.Errorf("before the new source's picture is whole: %v", m)
	}
	second.deltas <- whole
	eventually(t, "the new picture is in force", func() bool {
		m := p.ask(t, web)
		return len(m.Answer) == 1 && m.Answer[0].(*dns.A).A.String() == "10.96.0.2" && m.Answer[0].Header().Ttl == 9
	})
	if m := p.ask(t, "10-1-0-1.shop.pod.cluster.local"); len(m.Answer) != 1 {
		t.Errorf("a pod that there is: %v", m)
	}
	cancel()
	<-done
	l.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	l.Close()
}

// Where the kernel has no more watches to give, the file is looked at now and then.
func TestWatchFileWithoutEvents(t *testing.T) {
	for why, open := range map[string]func(string) (io.ReadCloser, error){
		"none to be had": func(string) (io.ReadCloser, error) { return nil, errors.New("too many open files") },
		"it breaks":      func(string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("an event")), nil },
	} {
		path := filepath.Join(t.TempDir(), "dns.yaml")
		ctx, cancel := context.WithCancel(context.Background())
		got := make(chan string, 8)
		ended := make(chan struct{})
		w := fileWatch{path: path, log: quiet(), open: open, every: time.Millisecond}
		go func() { defer close(ended); w.run(ctx, nil, func(data []byte) { got <- string(data) }) }()
		for _, text := range []string{"one", "two", "three"} {
			if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
			select {
			case g := <-got:
				if g != text {
					t.Errorf("%s: %q, want %q", why, g, text)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("%s: %q was not noticed", why, text)
			}
		}
		cancel()
		<-ended
	}
}

// The server for the outside world is counted, too, beside the other.
func TestMetricsOfBothServers(t *testing.T) {
	cm := &configMap{t: t, dir: t.TempDir()}
	p := runWith(t, Options{Listen: []string{anyPort}, ListenExternal: []string{anyPort}, ConfigFile: cm.write("external: {zones: [example.com]}\n")})
	(<-p.sources).deltas <- webAt("10.96.0.1")
	eventually(t, "it is ready", func() bool { code, _ := p.get("/readyz"); return code == 200 })
	p.ask(t, web)
	ask(t, p.dns[1], "udp", "none.example.com")
	var metrics string
	eventually(t, "both are counted", func() bool {
		code, text := p.get("/metrics")
		metrics = text
		return code == 200 && strings.Contains(text, `zone="external."`)
	})
	for _, want := range []string{
		`coredns_dns_requests_total{family="1",proto="udp",server="dns://:53",type="A",view="",zone="cluster.local."} 1`,
		`coredns_dns_requests_total{family="1",proto="udp",server="dns://` + anyPort + `",type="A",view="",zone="external."} 1`,
		"coredns_panics_total 0\n", "weft_dns_reloads_total 1\n",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in\n%s", want, metrics)
		}
	}
	if strings.Count(metrics, "coredns_cache_misses_total{") != 1 {
		t.Error("a server that has no cache has metrics of one")
	}
}
