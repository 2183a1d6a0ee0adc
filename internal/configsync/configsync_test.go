// SPDX-License-Identifier: Apache-2.0

package configsync

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// eventually polls until f gives no error.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// rig is a controller that can be stopped and started again at its address.
type rig struct {
	t    *testing.T
	ca   *Authority
	srv  *Server
	addr string
	stop func()
}

func newRig(t *testing.T) *rig {
	t.Helper()
	ca, _, changed, err := LoadAuthority(nil, time.Now())
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	r := &rig{t: t, ca: ca, srv: NewServer(slog.New(slog.DiscardHandler)), addr: "127.0.0.1:0"}
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *rig) start() {
	r.t.Helper()
	var l net.Listener
	eventually(r.t, func() (err error) { l, err = net.Listen("tcp", r.addr); return err })
	r.addr = l.Addr().String()
	conf, err := r.ca.ServerConfig(time.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.srv.Serve(ctx, l, conf) }()
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		r.stop = func() {}
	}
}

// pod is a gateway's pod: what it was told to serve.
type pod struct {
	mu        sync.Mutex
	held      map[route.Ref]resource
	revision  uint64
	completes int
	updates   int
	fail      error
	client    *Client
	stop      func()
}

func (r *rig) pod(gateway, keep string) *pod {
	r.t.Helper()
	dir := r.t.TempDir()
	data, changed, err := r.ca.Client(gateway, nil, time.Now())
	if err != nil || !changed {
		r.t.Fatal(changed, err)
	}
	for k, v := range data {
		if err := os.WriteFile(filepath.Join(dir, k), v, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	p := &pod{held: map[route.Ref]resource{}, client: &Client{Server: r.addr, Identity: dir, Keep: keep, Pod: "p", Log: slog.New(slog.DiscardHandler)}}
	p.run(r.t)
	return p
}

func (p *pod) run(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.client.Run(ctx, p.apply) }()
	p.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		p.stop = func() {}
	}
	t.Cleanup(func() { p.stop() })
}

func (p *pod) apply(u *route.Update) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.updates++
	if u.Complete {
		p.completes++
		clear(p.held)
	}
	for _, ref := range u.Removed {
		delete(p.held, ref)
	}
	for _, r := range encode(u) {
		p.held[r.ref()] = r
	}
	p.revision = u.Revision
	return p.fail
}

func (p *pod) keys() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for ref, r := range p.held {
		out = append(out, fmt.Sprint(ref.Key, "=", string(r.Value)))
	}
	slices.Sort(out)
	return out
}

func (p *pod) counts() (updates, completes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.updates, p.completes
}

// confirmed waits until all pods of a gateway serve a revision.
func (r *rig) confirmed(gateway string, pods int, revision uint64) {
	r.t.Helper()
	eventually(r.t, func() error {
		if s := r.srv.Served(gateway); s.Connected != pods || s.Revision < revision {
			return fmt.Errorf("%+v, want %d pods at %d", s, pods, revision)
		}
		return nil
	})
}

func endpoints(key, addr string) route.EndpointSet {
	return route.EndpointSet{Key: key, Endpoints: []route.Endpoint{{Address: addr}}}
}

func TestChangesArriveAndAreConfirmed(t *testing.T) {
	r := newRig(t)
	changed := make(chan string, 1000)
	defer r.srv.Subscribe(func(g string) { changed <- g })()
	a, b, other := r.pod("shop/a", ""), r.pod("shop/a", ""), r.pod("shop/b", "")
	first := r.srv.Publish("shop/a", &route.Update{Complete: true, Endpoints: []route.EndpointSet{endpoints("x", "192.0.2.1:80"), endpoints("y", "[2001:db8::1]:80")}})
	r.confirmed("shop/a", 2, first)
	if again := r.srv.Publish("shop/a", &route.Update{Endpoints: []route.EndpointSet{endpoints("x", "192.0.2.1:80")}}); again != first {
		t.Errorf("an update that changes nothing has revision %d, not %d", again, first)
	}
	second := r.srv.Publish("shop/a", &route.Update{
		Certificates: []route.Certificate{{Key: "c", Chain: "chain", PrivateKey: "key"}},
		Endpoints:    []route.EndpointSet{endpoints("x", "192.0.2.9:80")},
		Removed:      []route.Ref{{Kind: route.KindEndpointSet, Key: "y"}, {Kind: route.KindRoute, Key: "never there"}},
	})
	if second <= first {
		t.Errorf("revision %d after %d", second, first)
	}
	r.confirmed("shop/a", 2, second)
	want := []string{`c={"key":"c","chain":"chain","privateKey":"key"}`, `x={"key":"x","endpoints":[{"address":"192.0.2.9:80"}]}`}
	for _, p := range []*pod{a, b} {
		if got := p.keys(); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if _, completes := p.counts(); completes != 1 {
			t.Errorf("%d complete updates, want 1: a change is sent as a change", completes)
		}
	}
	eventually(t, func() error {
		if s := r.srv.Served("shop/b"); s.Connected != 1 || s.Published != 0 || s.Revision != 0 {
			return fmt.Errorf("the gateway that nothing was published for: %+v", s)
		}
		return nil
	})
	if got := other.keys(); len(got) != 0 {
		t.Errorf("another gateway's pod has %q", got)
	}
	if len(changed) == 0 || <-changed == "" {
		t.Error("no subscriber was told")
	}
	b.stop()
	r.confirmed("shop/a", 1, second)
	r.srv.Remove("shop/a")
	if s := r.srv.Served("shop/a"); s.Published != 0 {
		t.Errorf("after Remove: %+v", s)
	}
	third := r.srv.Publish("shop/a", &route.Update{Endpoints: []route.EndpointSet{endpoints("z", "192.0.2.1:80")}})
	r.confirmed("shop/a", 1, third)
	if got := a.keys(); len(got) != 1 {
		t.Errorf("removed and published anew, the pod has %q", got)
	}
}

func TestNothingIsAConfigurationToo(t *testing.T) {
	r := newRig(t)
	p := r.pod("g", "")
	r.confirmed("g", 1, r.srv.Publish("g", &route.Update{}))
	if updates, _ := p.counts(); updates != 1 {
		t.Errorf("%d updates, want 1", updates)
	}
}

func TestErrorsAreTold(t *testing.T) {
	r := newRig(t)
	p := r.pod("g", "")
	p.mu.Lock()
	p.fail = errors.Join(errors.New("one"), errors.New("two"))
	p.mu.Unlock()
	r.confirmed("g", 1, r.srv.Publish("g", &route.Update{}))
	if got := r.srv.Served("g").Errors; !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("%q", got)
	}
}

// A listener that a pod does not serve is told with each revision, and when the pod comes back.
func TestUnservedListenersAreTold(t *testing.T) {
	r := newRig(t)
	p := r.pod("g", "")
	p.mu.Lock()
	p.fail = errors.Join(&route.ListenerError{Listener: "a", Err: errors.New("address in use")}, errors.New("else"))
	p.mu.Unlock()
	r.confirmed("g", 1, r.srv.Publish("g", &route.Update{}))
	want := map[string]string{"a": "pod p: address in use"}
	if got := r.srv.Served("g").Unserved; !maps.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	r.stop()
	r.start()
	eventually(t, func() error {
		if s := r.srv.Served("g"); s.Connected != 1 || !maps.Equal(s.Unserved, want) || !s.Pods["p"] {
			return fmt.Errorf("the pod is back: %+v", s)
		}
		return nil
	})
	p.mu.Lock()
	p.fail = nil
	p.mu.Unlock()
	r.confirmed("g", 1, r.srv.Publish("g", &route.Update{Endpoints: []route.EndpointSet{endpoints("e", "10.0.0.1:80")}}))
	if got := r.srv.Served("g").Unserved; len(got) > 0 {
		t.Errorf("%q, want nothing", got)
	}
}

// A pod comes back to the same controller with the changes since; to another that holds the same with nothing; to
// another that holds something else with all of it.
func TestResume(t *testing.T) {
	r := newRig(t)
	p := r.pod("g", "")
	u := &route.Update{Endpoints: []route.EndpointSet{endpoints("x", "192.0.2.1:80"), endpoints("y", "192.0.2.1:80")}}
	r.confirmed("g", 1, r.srv.Publish("g", u))
	r.stop()
	rev := r.srv.Publish("g", &route.Update{Endpoints: []route.EndpointSet{endpoints("x", "192.0.2.2:80")}})
	r.start()
	r.confirmed("g", 1, rev)
	if updates, completes := p.counts(); updates != 2 || completes != 1 {
		t.Errorf("%d updates of which %d complete, want 2 and 1", updates, completes)
	}
	r.srv.Reset()
	next := r.srv.Publish("g", &route.Update{Endpoints: []route.EndpointSet{endpoints("x", "192.0.2.2:80"), endpoints("y", "192.0.2.1:80")}})
	if next <= rev {
		t.Errorf("the next controller's revision is %d, after %d", next, rev)
	}
	r.confirmed("g", 1, next)
	if _, completes := p.counts(); completes != 1 {
		t.Errorf("%d complete updates, want 1: it had everything", completes)
	}
	rev = r.srv.Publish("g", &route.Update{Endpoints: []route.EndpointSet{endpoints("x", "192.0.2.3:80")}})
	r.confirmed("g", 1, rev)
	if got := p.keys(); len(got) != 2 || !strings.Contains(got[0], "192.0.2.3") {
		t.Errorf("%q", got)
	}
	r.srv.Reset()
	r.confirmed("g", 1, r.srv.Publish("g", &route.Update{Endpoints: []route.EndpointSet{endpoints("z", "192.0.2.2:80")}}))
	if got := p.keys(); len(got) != 1 {
		t.Errorf("the next controller has one resource, the pod %q", got)
	}
}

// The pod's tables are the controller's whatever the changes, connections lost in between, and its own restarts.
func TestRandomChanges(t *testing.T) {
	r := newRig(t)
	keep := filepath.Join(t.TempDir(), "tables")
	p := r.pod("g", keep)
	rng := rand.New(rand.NewPCG(1, 2))
	want := map[string]string{}
	r.srv.Publish("g", &route.Update{})
	for i := range 300 {
		u := &route.Update{}
		for range rng.IntN(20) {
			key := fmt.Sprint("k", rng.IntN(40))
			if rng.IntN(3) == 0 {
				u.Removed = append(u.Removed, route.Ref{Kind: route.KindEndpointSet, Key: key})
				u.Endpoints = slices.DeleteFunc(u.Endpoints, func(e route.EndpointSet) bool { return e.Key == key })
				delete(want, key)
				continue
			}
			u.Removed = slices.DeleteFunc(u.Removed, func(r route.Ref) bool { return r.Key == key })
			u.Endpoints = slices.DeleteFunc(u.Endpoints, func(e route.EndpointSet) bool { return e.Key == key })
			e := endpoints(key, fmt.Sprintf("192.0.2.%d:80", rng.IntN(4)))
			u.Endpoints = append(u.Endpoints, e)
			want[key] = e.Endpoints[0].Address
		}
		rev := r.srv.Publish("g", u)
		switch i % 60 {
		case 20:
			r.stop()
			r.start()
		case 40:
			p.stop()
			p.run(t)
		}
		if i%30 == 0 {
			r.confirmed("g", 1, rev)
			p.mu.Lock()
			got := map[string]string{}
			for ref, res := range p.held {
				var e []route.EndpointSet
				if err := read(res.Value, &e); err != nil {
					t.Error(err)
				}
				got[ref.Key] = e[0].Endpoints[0].Address
			}
			p.mu.Unlock()
			if !maps.Equal(got, want) {
				t.Fatalf("after %d changes: got %v, want %v", i, got, want)
			}
		}
	}
}

// The log forgets; who comes from before that gets everything.
func TestLogIsBounded(t *testing.T) {
	tb := newTables(100)
	for i := range 20000 {
		tb.merge(&route.Update{Endpoints: []route.EndpointSet{endpoints(fmt.Sprint("k", i%7), fmt.Sprintf("192.0.2.1:%d", i))}})
	}
	if limit := 2 * (7 + logSlack); len(tb.log) > limit {
		t.Errorf("%d entries, limit %d", len(tb.log), limit)
	}
	if u := tb.updateFrom("e", 101); !u.Complete || len(u.Resources) != 7 {
		t.Errorf("from the beginning: complete %v, %d resources", u.Complete, len(u.Resources))
	}
	if u := tb.updateFrom("e", tb.revision-3); u.Complete || len(u.Resources) != 3 {
		t.Errorf("from a while ago: complete %v, %d resources", u.Complete, len(u.Resources))
	}
	if u := tb.updateFrom("e", tb.revision+1); !u.Complete {
		t.Error("a revision that never was is resumed from")
	}
}

func TestStartsWithoutController(t *testing.T) {
	r := newRig(t)
	keep := filepath.Join(t.TempDir(), "tables")
	p := r.pod("g", keep)
	r.confirmed("g", 1, r.srv.Publish("g", &route.Update{Endpoints: []route.EndpointSet{endpoints("x", "192.0.2.1:80")}, Certificates: []route.Certificate{{Key: "c", PrivateKey: "secret"}}}))
	rev := r.srv.Publish("g", &route.Update{Endpoints: []route.EndpointSet{endpoints("y", "192.0.2.1:80")}})
	r.confirmed("g", 1, rev)
	p.stop()
	r.stop()
	info, err := os.Stat(keep)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	want := p.keys()
	fresh := &pod{held: map[route.Ref]resource{}, client: p.client}
	fresh.run(t)
	eventually(t, func() error {
		if got := fresh.keys(); !reflect.DeepEqual(got, want) {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	})
	r.start()
	r.confirmed("g", 1, rev)
	if updates, completes := fresh.counts(); updates != 1 || completes != 1 {
		t.Errorf("%d updates, %d complete: what was kept is resumed from", updates, completes)
	}
	fresh.stop()
	for name, damage := range map[string]func([]byte) []byte{
		"cut":     func(b []byte) []byte { return b[:len(b)-3] },
		"changed": func(b []byte) []byte { return []byte(strings.Replace(string(b), "192.0.2.1", "192.0.2.7", 1)) },
		"garbage": func([]byte) []byte { return []byte("garbage and more") },
		"empty":   func([]byte) []byte { return nil },
	} {
		b, err := os.ReadFile(keep)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(keep+"-"+name, damage(b), 0o600); err != nil {
			t.Fatal(err)
		}
		u, err := (&keeper{path: keep + "-" + name}).load()
		if name == "cut" {
			// The last update is incomplete: what was before it counts, if that was whole.
			if err == nil && u != nil && u.Revision == rev && len(u.Resources) == len(want) {
				t.Errorf("%s: taken as whole", name)
			}
		} else if u != nil || (err == nil) != (name == "empty") {
			t.Errorf("%s: %v, %v", name, u, err)
		}
	}
}

func TestKeptFileStaysSmall(t *testing.T) {
	k := &keeper{path: filepath.Join(t.TempDir(), "tables")}
	tb := newTables(1)
	pad := strings.Repeat("x", 100_000)
	for i := range 200 {
		before := tb.revision
		tb.merge(&route.Update{Certificates: []route.Certificate{{Key: fmt.Sprint(i % 3), Chain: pad + fmt.Sprint(i)}}})
		if i == 0 {
			before = 0
		}
		if err := k.add(tb.updateFrom("e", before)); err != nil {
			t.Fatal(err)
		}
		k.running.Wait()
	}
	if info, err := os.Stat(k.path); err != nil || info.Size() > 3*300_000+keepSlack+200_000 {
		t.Errorf("%v %v", info.Size(), err)
	}
	u, err := k.load()
	if err != nil || u.Revision != tb.revision || u.Digest != tb.digest || len(u.Resources) != 3 {
		t.Errorf("%v %+v", err, u)
	}
}

func TestAuthorityRotates(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	_, first, changed, err := LoadAuthority(nil, now)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	load := func(data map[string][]byte, at time.Time) (*Authority, map[string][]byte, bool) {
		t.Helper()
		a, out, changed, err := LoadAuthority(data, at)
		if err != nil {
			t.Fatal(err)
		}
		return a, out, changed
	}
	a, same, changed := load(first, now.Add(24*time.Hour))
	if changed || !reflect.DeepEqual(same, first) {
		t.Error("a good authority is made anew")
	}
	client, _, err := a.Client("g", nil, now)
	if err != nil {
		t.Fatal(err)
	}
	if later, _, _ := a.Client("g", client, now.Add(leafLife/2)); !bytes.Equal(later[CertificateKey], client[CertificateKey]) {
		t.Error("a good certificate is made anew")
	}
	if _, changed, _ := a.Client("h", client, now); !changed {
		t.Error("another gateway's certificate is taken for good")
	}
	if _, changed, _ := a.Client("g", client, now.Add(leafLife*3/4)); !changed {
		t.Error("a certificate with a quarter of its time left is not renewed")
	}
	later := now.Add(authorityLife * 3 / 4)
	_, announced, changed := load(first, later)
	if !changed || string(announced[CertificateKey]) != string(first[CertificateKey]) || len(announced[AuthorityKey]) <= len(first[AuthorityKey]) {
		t.Error("the successor is announced before it signs")
	}
	if _, again, changed := load(announced, later); changed || !reflect.DeepEqual(again, announced) {
		t.Error("announced once more")
	}
	latest := now.Add(authorityLife * 9 / 10)
	b, next, changed := load(announced, latest)
	if !changed || string(next[CertificateKey]) != string(announced[nextCertificateKey]) {
		t.Error("the successor does not take over")
	}
	if !strings.Contains(string(next[AuthorityKey]), string(first[CertificateKey])) {
		t.Error("the old authority is no longer trusted while its certificates are about")
	}
	if _, changed, _ := b.Client("g", client, latest); !changed {
		t.Error("certificates of the old authority are renewed")
	}
	if _, final, changed := load(next, now.Add(authorityLife+time.Hour)); !changed || strings.Contains(string(final[AuthorityKey]), string(first[CertificateKey])) {
		t.Error("the expired authority stays")
	}
	if _, _, _, err := LoadAuthority(map[string][]byte{CertificateKey: []byte("x"), PrivateKeyKey: []byte("y")}, now); err == nil {
		t.Error("a Secret that somebody spoiled is overwritten")
	}
}

// Who has no certificate of the authority gets nothing, and a pod takes nothing from another authority's server.
func TestStrangersAreRefused(t *testing.T) {
	r := newRig(t)
	r.srv.Publish("g", &route.Update{Endpoints: []route.EndpointSet{endpoints("x", "192.0.2.1:80")}})
	stranger := newRig(t)
	p := stranger.pod("g", "")
	p.stop()
	p.client.Server = r.addr
	s := &session{c: p.client, apply: p.apply}
	if heard, err := s.talk(t.Context(), r.addr); heard || err == nil {
		t.Errorf("heard %v, %v", heard, err)
	}
	if updates, _ := p.counts(); updates != 0 {
		t.Errorf("%d updates", updates)
	}
}

// Connections that never say who they are take little: of one host only a few are kept, and others are served.
func TestSilentConnectionsAreFew(t *testing.T) {
	r := newRig(t)
	for range 5 * maxGreeting {
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	eventually(t, func() error {
		r.srv.mu.Lock()
		defer r.srv.mu.Unlock()
		if n := r.srv.greeting["127.0.0.1"]; n != maxGreeting {
			return fmt.Errorf("%d connections wait to be greeted, want %d", n, maxGreeting)
		}
		return nil
	})
	// Another host's pod.
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	data, _, err := r.ca.Client("g", nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	conf, err := clientConfig(data)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.DialWithDialer(dialer, "tcp", r.addr, conf)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := writeFrame(c, hello{Version: version}, maxAnswer); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if n := r.srv.Served("g").Connected; n != 1 {
			return fmt.Errorf("%d pods", n)
		}
		return nil
	})
}

func TestFramesAreBounded(t *testing.T) {
	var v any
	if err := readFrame(strings.NewReader("\xff\xff\xff\xff{}"), &v, 100); err == nil || !strings.Contains(err.Error(), "allows 100") {
		t.Errorf("%v", err)
	}
	if err := readFrame(strings.NewReader("\x00\x00\x00\x09{}"), &v, 100); err == nil {
		t.Error("a frame that ends early is taken")
	}
	var b strings.Builder
	if err := writeFrame(&b, strings.Repeat("x", 200), 100); err == nil || b.Len() > 0 {
		t.Errorf("%v, %d bytes written", err, b.Len())
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\x00\x00\x00\x30{\"epoch\":\"e\",\"digest\":\"00\",\"resources\":[{\"kind\":1}]}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var u update
		if err := readFrame(strings.NewReader(string(b)), &u, 1000); err == nil {
			decode(&u)
		}
	})
}

// TestKeepFails says so when the configuration can't be kept, and leaves nothing lying about.
func TestKeepFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tables")
	if err := os.Mkdir(path, 0o700); err != nil { // nothing can take a directory's place
		t.Fatal(err)
	}
	k := &keeper{path: path}
	if err := k.replace(&update{Epoch: "e", Revision: 1, Complete: true}); err == nil {
		t.Error("it was kept in a directory's place")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestKeepMissedOne has one update fail to be kept: those after it don't make what is there unusable.
func TestKeepMissedOne(t *testing.T) {
	k := &keeper{path: filepath.Join(t.TempDir(), "tables")}
	at := func(n uint64, values ...string) *update {
		u := &update{Epoch: "e", Revision: n, Complete: n == 1}
		for i, v := range values {
			r := resource{route.KindRoute, strconv.Itoa(i), json.RawMessage(v)}
			u.Digest.toggle(r.sum())
			if u.Complete || i == len(values)-1 {
				u.Resources = append(u.Resources, r)
			}
		}
		return u
	}
	if err := k.add(at(1, "1")); err != nil {
		t.Fatal(err)
	}
	k.f.Close()
	if err := k.add(at(2, "1", "2")); err == nil {
		t.Fatal("a closed file took an update")
	}
	if err := k.add(at(3, "1", "2", "3")); err == nil {
		t.Error("an update was kept without the one before it")
	}
	u, err := (&keeper{path: k.path}).load()
	if err != nil || u == nil || u.Revision != 1 {
		t.Errorf("kept: %v, %v; want revision 1", u, err)
	}
}

// TestKeepAfterAFailedRewrite: when the file could not be written anew beside the updates, the next one is, with all.
func TestKeepAfterAFailedRewrite(t *testing.T) {
	k := &keeper{path: filepath.Join(t.TempDir(), "tables")}
	tb := newTables(1)
	for i := range 3 {
		before := tb.revision
		if i == 0 {
			before = 0
		}
		tb.merge(&route.Update{Certificates: []route.Certificate{{Key: fmt.Sprint(i), Chain: "c"}}})
		if i == 1 {
			k.failed = errors.New("no space left on device")
		}
		if err := k.add(tb.updateFrom("e", before)); err != nil {
			t.Errorf("update %d: %v", i, err)
		}
		if u, err := k.load(); err != nil || u.Revision != tb.revision || u.Digest != tb.digest || len(u.Resources) != i+1 {
			t.Errorf("after update %d: %v %+v", i, err, u)
		}
	}
}

// How long one change takes until a pod has confirmed it, beside 5,000 other resources.
func BenchmarkChangeToConfirmation(b *testing.B) {
	ca, _, _, err := LoadAuthority(nil, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	srv := NewServer(slog.New(slog.DiscardHandler))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	conf, err := ca.ServerConfig(time.Now())
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { _ = srv.Serve(ctx, l, conf) })
	dir := b.TempDir()
	data, _, err := ca.Client("g", nil, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	for k, v := range data {
		if err := os.WriteFile(filepath.Join(dir, k), v, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	confirmed := make(chan struct{}, 1)
	defer srv.Subscribe(func(string) {
		select {
		case confirmed <- struct{}{}:
		default:
		}
	})()
	client := &Client{Server: l.Addr().String(), Identity: dir, Keep: filepath.Join(dir, "tables"), Log: slog.New(slog.DiscardHandler)}
	running.Go(func() { _ = client.Run(ctx, func(*route.Update) error { return nil }) })
	u := &route.Update{}
	for i := range 5000 {
		u.Endpoints = append(u.Endpoints, endpoints(fmt.Sprint("k", i), "192.0.2.1:80"))
	}
	change := func(u *route.Update) {
		for revision := srv.Publish("g", u); srv.Served("g").Revision < revision; {
			<-confirmed
		}
	}
	change(u)
	for i := 0; b.Loop(); i++ {
		change(&route.Update{Endpoints: []route.EndpointSet{endpoints("x", fmt.Sprintf("192.0.2.1:%d", i))}})
	}
}

// While the file is written anew updates go on being kept, and none of them is lost, even where a complete one comes
// between.
func TestKeepsWhileTheFileIsWrittenAnew(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tables")
	if err := os.WriteFile(filepath.Join(dir, tempPrefix+"old"), []byte("left by a process that was killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	k := &keeper{path: path}
	k.tidy()
	tb := newTables(1)
	add := func(complete bool, key, value string) {
		t.Helper()
		before := tb.revision
		tb.merge(&route.Update{Endpoints: []route.EndpointSet{endpoints(key, value)}})
		if complete {
			before = 0
		}
		if err := k.add(tb.updateFrom("e", before)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string) {
		t.Helper()
		if u, err := (&keeper{path: path}).load(); err != nil || u.Revision != tb.revision || u.Digest != tb.digest {
			t.Errorf("%s: %v %+v", when, err, u)
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("%s: left behind: %v", when, left)
		}
	}
	add(true, "a", "10.0.0.1:80")
	add(false, "b", "10.0.0.2:80")
	for _, complete := range []bool{false, true} {
		k.mu.Lock()
		r, err := k.begin()
		k.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		add(false, "c", fmt.Sprint("10.0.1.1:", 80+tb.revision))
		err = k.compact(r)
		add(complete, "d", fmt.Sprint("10.0.1.2:", 80+tb.revision))
		if err := k.finish(r, err); err != nil {
			t.Fatal(err)
		}
		check(fmt.Sprint("written anew, complete between: ", complete))
		add(false, "e", fmt.Sprint("10.0.1.3:", 80+tb.revision))
		check("and goes on")
	}
	k.close()
}
