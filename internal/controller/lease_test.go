// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/model"
)

// lines is a log to look into.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

// Write implements io.Writer.
func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.all.String(), text)
}

// A leader that was killed, and so gave nothing back, is replaced within seconds; on an API server that takes more than
// a second to answer, and for once does not at all, a leader stays the leader.
func TestLeaseIsShortAndKept(t *testing.T) {
	t.Parallel()
	f := newFakeAPI(t)
	f.put("/apis/coordination.k8s.io/v1/namespaces/weft/leases/weft-controller", `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease",
		"spec":{"holderIdentity":"killed","leaseDurationSeconds":5,"acquireTime":"2026-01-01T00:00:00.000000Z","renewTime":"2026-01-01T00:00:00.000000Z","leaseTransitions":1}}`)
	log := &lines{}
	c, err := New(Config{API: f.config(), Identity: "next", Namespace: "weft", Lease: "weft-controller", Metrics: prometheus.NewRegistry(),
		Record: func(model.Event) {}, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	began := time.Now()
	eventually(t, "the next one leads", func() bool { return log.has("msg=leading") })
	if took := time.Since(began); took > 12*time.Second { // 5 s and two tries; a busy machine gets some more
		t.Errorf("the next leader came after %v", took)
	}
	const slow = 1200 * time.Millisecond
	_, before := f.setSlow(slow)
	eventually(t, "the Lease is renewed for longer than a leader goes on without", func() bool {
		_, now := f.setSlow(slow)
		return now >= before+4
	})
	came, written := f.setSlow(time.Minute)
	eventually(t, "a request is lost", func() bool { now, _ := f.setSlow(time.Minute); return now > came })
	eventually(t, "the Lease is renewed again", func() bool { _, now := f.setSlow(0); return now > written+1 })
	if log.has("no longer leading") {
		t.Error("leadership was lost")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What goes wrong with somebody's object is in the controller's log as well, once for each time it is told.
func TestWarningsAreLogged(t *testing.T) {
	log, recorded := &lines{}, 0
	record := Logged(func(model.Event) { recorded++ }, slog.New(slog.NewTextHandler(log, nil)))
	record(model.Event{Kind: "Service", Reason: "AddressAllocated", Message: "all is well"})
	record(model.Event{Kind: "Gateway", Name: model.Name{Namespace: "infra", Name: "web"}, Warning: true, Reason: "InvalidCertificateRef", Message: "there is no Secret infra/tls"})
	if want := `level=WARN msg="there is no Secret infra/tls" kind=Gateway namespace=infra name=web reason=InvalidCertificateRef`; !log.has(want) || log.has("all is well") || recorded != 2 {
		t.Errorf("%d events; logged: %s", recorded, log.all.String())
	}
}
