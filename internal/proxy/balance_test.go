// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// endpoints makes a backend with n endpoints.
func endpoints(n int) *backend {
	b := &backend{conf: route.Backend{Key: "b"}}
	var set []route.Endpoint
	for i := range n {
		set = append(set, route.Endpoint{Address: fmt.Sprint("e", i)})
	}
	b.update(set, time.Now())
	return b
}

func balanced(b route.Balance) *exchange {
	return &exchange{plan: &plan{balance: newBalancer(&b)}, peer: &peer{}, began: time.Now()}
}

func TestRoundRobin(t *testing.T) {
	b := endpoints(5)
	count := map[string]int{}
	for range 1000 {
		count[balanced(route.Balance{Kind: route.RoundRobin}).pick(b).address]++
	}
	for a, n := range count {
		if n != 200 {
			t.Errorf("%s got %d of 1000", a, n)
		}
	}
	// One that fails is passed over.
	b.endpoints.Load().all[0].ejected.Store(math.MaxInt64)
	for range 20 {
		if e := balanced(route.Balance{Kind: route.RoundRobin}).pick(b); e.address == "e0" {
			t.Error("the ejected endpoint was chosen")
		}
	}
}

func TestHashIsConsistent(t *testing.T) {
	pick := func(b *backend, key string, tried ...*endpoint) string {
		x := balanced(route.Balance{Kind: route.Hash, Key: "$http_x_key"})
		x.fields, x.tried = []field{newField("X-Key", key)}, tried
		return x.pick(b).address
	}
	b := endpoints(10)
	before := map[string]string{}
	count := map[string]int{}
	for i := range 10_000 {
		key := fmt.Sprint("k", i)
		before[key] = pick(b, key)
		count[before[key]]++
		if pick(endpoints(10), key) != before[key] {
			t.Fatal("another replica of the gateway chooses otherwise")
		}
	}
	for a, n := range count {
		if n < 800 || n > 1200 {
			t.Errorf("%s has %d of 10,000 keys", a, n)
		}
	}
	var set []route.Endpoint
	for i := range 9 {
		set = append(set, route.Endpoint{Address: fmt.Sprint("e", i)})
	}
	b.update(set, time.Now())
	for key, a := range before {
		now := pick(b, key)
		if a != "e9" && now != a {
			t.Fatalf("%s moved from %s to %s though that is still there", key, a, now)
		}
	}
	// A retry goes elsewhere, to the same place each time.
	first := b.endpoints.Load().all[0]
	for key, a := range before {
		if a == first.address {
			if two := pick(b, key, first); two == a || two != pick(b, key, first) {
				t.Fatalf("retry of %s at %s, then %s", key, two, pick(b, key, first))
			}
		}
	}
	if balanced(route.Balance{Kind: route.Hash, Key: "$http_none"}).pick(b) == nil {
		t.Error("no endpoint without a key")
	}
}

func TestHashSubset(t *testing.T) {
	b := endpoints(10)
	count := map[string]int{}
	for range 1000 {
		x := balanced(route.Balance{Kind: route.Hash, Key: "$http_x_key", SubsetSize: 3})
		x.fields = []field{newField("X-Key", "same")}
		count[x.pick(b).address]++
	}
	if len(count) != 3 {
		t.Errorf("%v", count)
	}
	for a, n := range count {
		if n < 200 {
			t.Errorf("%s got %d of 1000", a, n)
		}
	}
}

func TestEWMA(t *testing.T) {
	b := endpoints(2)
	now := time.Now().UnixNano()
	slow, fast := b.endpoints.Load().all[0], b.endpoints.Load().all[1]
	slow.took.observe(int64(100*time.Millisecond), now)
	fast.took.observe(int64(time.Millisecond), now)
	n := 0
	for range 1000 {
		if balanced(route.Balance{Kind: route.EWMA}).pick(b) == slow {
			n++
		}
	}
	if n < 150 || n > 350 { // both draws fall on it a quarter of the time
		t.Errorf("the slow endpoint got %d of 1000", n)
	}
	var l latency
	l.observe(1000, 0)
	l.observe(5000, 0)
	if l.read(0) != 5000 {
		t.Errorf("a peak counts at once: %v", l.read(0))
	}
	l.observe(1000, 0)
	if v := l.read(0); v >= 5000 || v <= 1000 {
		t.Errorf("and is forgotten slowly: %v", v)
	}
	if v := l.read(int64(time.Minute)); v > 50 {
		t.Errorf("after a minute %v is left", v)
	}
}

// The policy is what requests over sockets obey, and times are learnt from them.
func TestBalanceOverSockets(t *testing.T) {
	a, b := newEcho(t, "a"), newEcho(t, "b")
	r := start(t, guarded(route.Policy{Balance: &route.Balance{Kind: route.Hash, Key: "$remote_addr"}}, a.addr(), b.addr()))
	from := r.want(200, "/", nil).Header.Get("X-From")
	for range 20 {
		if got := r.want(200, "/", nil).Header.Get("X-From"); got != from {
			t.Fatalf("%s, then %s", from, got)
		}
	}
	r.update.Policies[0].Balance = &route.Balance{Kind: route.EWMA}
	r.apply()
	until(t, "both endpoints' times are known", func() bool {
		r.want(200, "/", nil)
		known := 0
		for _, e := range r.srv.tables.backends["b"].Load().endpoints.Load().all {
			e.took.mu.Lock()
			if e.took.at != 0 {
				known++
			}
			e.took.mu.Unlock()
		}
		return known == 2
	})
}

func TestSessionAttributes(t *testing.T) {
	a := newEcho(t, "a")
	u := guarded(route.Policy{Session: &route.Session{Kind: route.SessionCookie, Name: "route", Path: "/app", Domain: "example.com", SameSite: "None",
		Permanent: true, AbsoluteTimeout: route.Duration(time.Hour)}}, a.addr())
	r := start(t, u)
	c := r.want(200, "/", nil).Cookies()[0]
	if c.Name != "route" || c.Path != "/app" || c.Domain != "example.com" || c.SameSite != http.SameSiteNoneMode || !c.Secure || !c.HttpOnly || c.MaxAge != 3600 ||
		time.Until(c.Expires) < 50*time.Minute {
		t.Errorf("%+v", c)
	}
	if c := r.want(200, "/", map[string]string{"Cookie": "route=" + c.Value}).Cookies(); len(c) != 0 {
		t.Errorf("the client is told what it knows: %v", c)
	}
}

// A session stays with an endpoint that fails, unless it may move.
func TestSessionsMoveOnFailure(t *testing.T) {
	for _, move := range []bool{false, true} {
		up := newEcho(t, "up")
		down := newEcho(t, "down")
		u := simple(down.addr())
		u.Routes[0].Rules[0].Session = &route.Session{Kind: route.SessionCookie, Name: "s", ChangeOnFailure: move}
		r := start(t, u)
		cookie := map[string]string{"Cookie": "s=" + r.want(200, "/", nil).Cookies()[0].Value}
		r.update.Endpoints[0].Endpoints = append(r.update.Endpoints[0].Endpoints, route.Endpoint{Address: up.addr()})
		r.apply()
		down.Close()
		for range 5 {
			resp, _ := r.once("GET", "/", cookie, "")
			if move && (resp.StatusCode != 200 || len(resp.Cookies()) != 1) || !move && (resp.StatusCode != 502 || len(resp.Cookies()) != 0) {
				t.Errorf("may move %v: %d, cookies %v", move, resp.StatusCode, resp.Cookies())
			}
		}
		// When it is gone the session moves in any case.
		r.update.Endpoints[0].Endpoints = r.update.Endpoints[0].Endpoints[1:]
		r.apply()
		if resp := r.want(200, "/", cookie); len(resp.Cookies()) != 1 {
			t.Errorf("may move %v: no new session", move)
		}
	}
}

// Retries are at most a share of what a backend has to do.
func TestRetryBudget(t *testing.T) {
	b := endpoints(1)
	n := 0
	for b.mayRetry() {
		if n++; n > 1000 {
			break
		}
	}
	if n != retryFew {
		t.Errorf("%d retries of no requests", n)
	}
	b.endpoints.Load().all[0].inflight.Store(1000)
	for b.mayRetry() {
		if n++; n > 1000 {
			break
		}
	}
	if n != 1000/retryShare {
		t.Errorf("%d retries of 1000 requests", n)
	}
}

// What retries take of the budget is given back, however they end.
func TestRetryBudgetIsGivenBack(t *testing.T) {
	var n atomic.Int64
	flaky := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1)%2 == 1 || strings.HasPrefix(r.URL.Path, "/bad") {
			w.WriteHeader(503)
		}
	})
	u := simple(flaky, "127.0.0.1:1")
	u.Routes[0].Rules[0].Retry = &route.Retry{Codes: []int{503}, Attempts: 2}
	r := start(t, u)
	for i := range 200 {
		target := "/"
		if i%3 == 0 {
			target = "/bad"
		}
		_, _ = r.once("GET", target, nil, "")
	}
	if left := r.srv.tables.backends["b"].Load().retrying.Load(); left != 0 {
		t.Errorf("%d retries are still counted", left)
	}
}

func TestRetryRules(t *testing.T) {
	var n atomic.Int64
	e := serve(t, func(w http.ResponseWriter, _ *http.Request) { n.Add(1); w.WriteHeader(503) })
	for _, c := range []struct {
		retry  route.Retry
		method string
		want   int64
	}{
		{route.Retry{Codes: []int{503}, Attempts: 2}, "POST", 3},
		{route.Retry{Codes: []int{503}, Attempts: 2, Idempotent: true}, "POST", 1},
		{route.Retry{Codes: []int{503}, Attempts: 2, Idempotent: true}, "PUT", 3},
		{route.Retry{Codes: []int{503}, Attempts: 2, Never: true}, "GET", 1},
		{route.Retry{Codes: []int{503}, Attempts: 2, Within: 1}, "GET", 1},
		{route.Retry{Codes: []int{502}, Attempts: 2}, "GET", 1},
		{route.Retry{Codes: []int{503}}, "GET", 1},
		{route.Retry{Codes: []int{503}, Attempts: 15}, "GET", 16},
	} {
		n.Store(0)
		u := guarded(route.Policy{Retry: &c.retry}, e)
		if resp, _ := start(t, u).once(c.method, "/", nil, "x"); resp.StatusCode != 503 || n.Load() != c.want {
			t.Errorf("%+v %s: %d after %d attempts, want %d", c.retry, c.method, resp.StatusCode, n.Load(), c.want)
		}
	}
}

// A request that may have been acted on is sent again when its method allows that, or when whoever made the rule does.
func TestRequestsThatBreakOff(t *testing.T) {
	for _, two := range []bool{false, true} {
		var n atomic.Int64
		breaks := func(http.ResponseWriter, *http.Request) {
			n.Add(1)
			panic(http.ErrAbortHandler)
		}
		var endpoint string
		if two {
			endpoint = serve2(t, breaks).Listener.Addr().String()
		} else {
			endpoint = serve(t, breaks)
		}
		for _, c := range []struct {
			retry  route.Retry
			method string
			want   int64
		}{
			{route.Retry{Codes: []int{502}, Attempts: 2}, "POST", 1},
			{route.Retry{Codes: []int{502}, Attempts: 2}, "PUT", 3},
			{route.Retry{Codes: []int{502}, Attempts: 2, Unsafe: true}, "POST", 3},
			{route.Retry{Codes: []int{502}}, "PUT", 1},
		} {
			n.Store(0)
			u := guarded(route.Policy{Retry: &c.retry}, endpoint)
			if two {
				u.Backends[0].Protocol = route.HTTP2
			}
			if resp, _ := start(t, u).once(c.method, "/", nil, "x"); resp.StatusCode != 502 || n.Load() != c.want {
				t.Errorf("HTTP/2 %v, %+v %s: %d after %d attempts, want %d", two, c.retry, c.method, resp.StatusCode, n.Load(), c.want)
			}
		}
	}
}

// attemptsLog knows how many attempts the last exchange took.
type attemptsLog struct{ attempts atomic.Int64 }

func (l *attemptsLog) log(x *exchange, _ time.Duration) { l.attempts.Store(int64(x.attempts)) }

// Connections that can't be made count as attempts where a rule says how many there may be.
func TestConnectionsOfRetries(t *testing.T) {
	for _, c := range []struct {
		retry *route.Retry
		want  int
	}{
		{nil, connectTries}, {&route.Retry{}, 1}, {&route.Retry{Attempts: 1}, 2}, {&route.Retry{Attempts: 4}, 5}, {&route.Retry{Never: true}, 1},
		{&route.Retry{Attempts: 4, Idempotent: true}, 5},
	} {
		u := simple("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4", "127.0.0.1:5", "127.0.0.1:6")
		u.Routes[0].Rules[0].Retry = c.retry
		var log attemptsLog
		r := start(t, u, Config{AccessLog: &log})
		r.once("POST", "/", nil, "x")
		if int(log.attempts.Load()) != c.want {
			t.Errorf("%+v: %d connections were tried, want %d", c.retry, log.attempts.Load(), c.want)
		}
	}
}

// What a rule says a failure must be for another attempt is what it is (nginx's proxy_next_upstream).
func TestFailuresThatCount(t *testing.T) {
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	for _, c := range []struct {
		name         string
		retry        route.Retry
		broken, late int64
	}{
		{"any", route.Retry{Attempts: 1}, 2, 2},
		{"no timeout", route.Retry{Attempts: 1, NotOnTimeout: true}, 2, 1},
		{"no error", route.Retry{Attempts: 1, NotOnError: true}, 1, 2},
		{"none", route.Retry{Attempts: 1, NotOnError: true, NotOnTimeout: true}, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int64
			e := serve(t, func(_ http.ResponseWriter, r *http.Request) {
				if n.Add(1); r.URL.Path == "/break" {
					panic(http.ErrAbortHandler)
				}
				select {
				case <-stop:
				case <-r.Context().Done():
				}
			})
			r := start(t, guarded(route.Policy{Retry: &c.retry, ReadTimeout: route.Duration(time.Second)}, e))
			for target, want := range map[string]int64{"/break": c.broken, "/late": c.late} {
				n.Store(0)
				if resp, _ := r.once("GET", target, nil, ""); resp.StatusCode < 502 || n.Load() != want {
					t.Errorf("%s: %d after %d attempts, want %d", target, resp.StatusCode, n.Load(), want)
				}
			}
			var log attemptsLog
			u := guarded(route.Policy{Retry: &c.retry}, "127.0.0.1:1", "127.0.0.1:2")
			start(t, u, Config{AccessLog: &log}).once("GET", "/", nil, "")
			if log.attempts.Load() != c.broken {
				t.Errorf("%d connections were tried, want %d", log.attempts.Load(), c.broken)
			}
		})
	}
}

// The wait before a retry is never shorter than was asked for.
func TestBackoff(t *testing.T) {
	for _, c := range []struct {
		backoff time.Duration
		attempt int
		want    time.Duration
	}{
		{0, 1, 0}, {25 * time.Millisecond, 1, 25 * time.Millisecond}, {25 * time.Millisecond, 3, 100 * time.Millisecond},
		{25 * time.Millisecond, 100, backoffMost}, {30 * time.Second, 1, 30 * time.Second}, {30 * time.Second, 50, 30 * time.Second},
		{200_000 * time.Hour, 60, 200_000 * time.Hour},
	} {
		p := plan{retry: &route.Retry{Backoff: route.Duration(c.backoff)}}
		if got := p.backoff(c.attempt); got != c.want {
			t.Errorf("%v, attempt %d: %v, want %v", c.backoff, c.attempt, got, c.want)
		}
	}
}

// A connection that is upgraded tells its session as well, and ends when nothing moves for as long as the policy says.
func TestUpgradesHaveSessions(t *testing.T) {
	e := talk(t, func(c net.Conn) {
		defer c.Close()
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Secret: s\r\n\r\n")
		_, _ = io.Copy(c, r)
	})
	u := guarded(route.Policy{Session: &route.Session{Kind: route.SessionCookie, Name: "s"}, HideHeaders: []string{"X-Secret"}, ReadTimeout: route.Duration(2 * time.Second)}, e)
	r := start(t, u)
	c := r.dial()
	c.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil || resp.StatusCode != 101 || len(resp.Cookies()) != 1 || resp.Header.Get("X-Secret") != "" || resp.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("%v %v", resp, err)
	}
	c.send("ping")
	b := make([]byte, 4)
	if _, err := io.ReadFull(c.r, b); err != nil || string(b) != "ping" {
		t.Fatalf("%q %v", b, err)
	}
	if _, err := c.r.ReadByte(); err == nil {
		t.Error("the silent tunnel goes on")
	}
	until(t, "the tunnel is over", func() bool { return r.srv.active.Load() == 0 })
}
