// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-net/weft/internal/model"
)

func named(n string) model.Name { return model.Name{Namespace: "shop", Name: n} }

func svcOnPort(p int32) *corev1.Service {
	return &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9", Ports: []corev1.ServicePort{{Port: p}}}}
}

func follow(t *testing.T, s *apiServer, o Options) (*Watcher, func() *model.Delta) {
	t.Helper()
	o.Kinds, o.Log = Services, slog.New(slog.DiscardHandler)
	w, err := NewWatcher(s.config(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return w, func() *model.Delta {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		d, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("no Delta: %v", err)
		}
		return d
	}
}

func TestWatcherDeliversTheWholeThenTheDifference(t *testing.T) {
	s := newAPIServer(t)
	s.apply("cart", svcOnPort(80))
	s.apply("web", svcOnPort(80))
	w, next := follow(t, s, Options{})

	d := next()
	if !d.Complete || len(d.Services) != 2 || d.Services[named("cart")].Ports[0].Port != 80 {
		t.Fatalf("first Delta: %+v", d)
	}
	s.apply("cart", svcOnPort(81))
	if d = next(); len(d.Services) != 1 || d.Services[named("cart")].Ports[0].Port != 81 {
		t.Fatalf("after a change: %+v", d.Services)
	}
	// A change that weft does not see (an annotation of someone else's) is no change.
	same := svcOnPort(81)
	same.Annotations = map[string]string{"example.com/touched": "now"}
	s.apply("cart", same)
	s.apply("web", nil)
	d = next()
	if v, ok := d.Services[named("web")]; len(d.Services) != 1 || !ok || v != nil {
		t.Fatalf("after a deletion: %+v", d.Services)
	}
	if age := w.Age(); age < 0 || age > time.Minute {
		t.Errorf("Age() = %v", age)
	}
}

// What happened while the API server was away arrives afterwards, deletions too, and nothing else does.
func TestWatcherCatchesUpAfterAnOutage(t *testing.T) {
	s := newAPIServer(t)
	s.apply("cart", svcOnPort(80))
	s.apply("web", svcOnPort(80))
	_, next := follow(t, s, Options{})
	next()
	s.set(func() { s.mute = true })
	s.apply("web", nil)
	s.apply("new", svcOnPort(90))
	s.set(func() { s.mute = false })
	s.cut()
	got := map[model.Name]*model.Service{}
	for len(got) < 1 {
		for n, v := range next().Services {
			got[n] = v
		}
	}
	if v := got[named("new")]; v == nil || v.Ports[0].Port != 90 || got[named("cart")] != nil {
		t.Errorf("after the outage: %+v", got)
	}
}

func TestSilentWatchIsRenewed(t *testing.T) {
	s := newAPIServer(t)
	s.apply("cart", svcOnPort(80))
	reg := prometheus.NewRegistry()
	w, next := follow(t, s, Options{Silence: 100 * time.Millisecond, Registerer: reg})
	next()
	s.set(func() { s.mute = true })
	s.apply("cart", svcOnPort(81)) // lost on the dead watch
	s.set(func() { s.mute = false })
	if d := next(); d.Services[named("cart")].Ports[0].Port != 81 {
		t.Errorf("after renewal: %+v", d.Services)
	}
	if testutil.ToFloat64(w.renewed.WithLabelValues("Service")) < 1 {
		t.Error("weft_watch_renewed_total does not count it")
	}
	if n, err := testutil.GatherAndCount(reg, "weft_watch_last_heard_timestamp_seconds"); err != nil || n != 1 {
		t.Errorf("weft_watch_last_heard_timestamp_seconds: %d series, %v", n, err)
	}
}

// A watch that somebody knows to be behind is opened anew at once.
func TestWatchIsRenewedOnDemand(t *testing.T) {
	s := newAPIServer(t)
	s.apply("cart", svcOnPort(80))
	w, next := follow(t, s, Options{})
	next()
	s.set(func() { s.mute = true })
	s.apply("cart", svcOnPort(81)) // lost on the dead watch
	s.set(func() { s.mute = false })
	w.Renew("Pod") // of nobody's interest here
	w.Renew("Service")
	if d := next(); d.Services[named("cart")].Ports[0].Port != 81 {
		t.Errorf("after renewal: %+v", d.Services)
	}
}

// An object of which a part is unusable counts for the rest, and its owner is told.
func TestUnusableFieldIsReported(t *testing.T) {
	s := newAPIServer(t)
	svc := svcOnPort(80)
	svc.Spec.ExternalIPs = []string{"not-an-address"}
	s.apply("cart", svc)
	events := make(chan model.Event, 10)
	_, next := follow(t, s, Options{Record: func(e model.Event) { events <- e }})
	if d := next(); d.Services[named("cart")] == nil {
		t.Fatal("the Service is missing")
	}
	e := <-events
	if !e.Warning || e.Kind != "Service" || !strings.Contains(e.Message, `spec.externalIPs: "not-an-address"`) {
		t.Errorf("event: %+v", e)
	}
}

// Whoever asks late has the state as it is by then, with no word of what has gone meanwhile, and of what was wrong only
// what is still.
func TestWatcherKeepsUpUntilAsked(t *testing.T) {
	s := newAPIServer(t)
	bad := func() *corev1.Service {
		svc := svcOnPort(80)
		svc.Spec.ExternalIPs = []string{"not-an-address"}
		return svc
	}
	for _, name := range []string{"bad", "corrected", "gone"} {
		s.apply(name, bad())
	}
	var told []string
	w, next := follow(t, s, Options{Record: func(e model.Event) { told = append(told, e.Name.Name) }})
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("in a minute, not: %s", what)
			}
		}
	}
	eventually("the first list", func() bool { return w.Age() >= 0 })
	s.apply("corrected", svcOnPort(81))
	s.apply("gone", nil)
	s.apply("last", svcOnPort(82))
	eventually("the last change", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.pending.Services[named("last")] != nil
	})
	if len(told) > 0 {
		t.Errorf("told before anybody asked: %v", told)
	}
	d := next()
	if _, there := d.Services[named("gone")]; there || !d.Whole || len(d.Services) != 3 || d.Services[named("corrected")].Ports[0].Port != 81 {
		t.Errorf("the state: whole %v, %+v", d.Whole, d.Services)
	}
	if len(told) != 1 || told[0] != "bad" {
		t.Errorf("told of %v", told)
	}
	s.apply("last", nil)
	d = next()
	if v, there := d.Services[named("last")]; !there || v != nil || d.Whole {
		t.Errorf("after a deletion: whole %v, %+v", d.Whole, d.Services)
	}
}

func TestSnapshot(t *testing.T) {
	s := newAPIServer(t)
	s.apply("cart", svcOnPort(80))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	d, err := Snapshot(ctx, s.config(), Services)
	if err != nil || len(d.Services) != 1 {
		t.Fatalf("Snapshot: %v, %v", d, err)
	}
	// A kind that the server refuses ends a one-shot command with the reason, not with a hang.
	if _, err = Snapshot(ctx, s.config(), Pods); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Snapshot of a refused kind: %v", err)
	}
}

// What a snapshot leaves out of an object is told, as an answer may rest on it.
func TestSnapshotTellsWhatItLeavesOut(t *testing.T) {
	var told bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&told, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	ctx, cancel := context.WithCancelCause(t.Context())
	log := slog.New(failFast{cancel})
	log.Info("listed")
	log.Warn("object not usable in full", "name", "p", "problem", "not a CIDR; left out")
	if got := told.String(); !strings.Contains(got, "not a CIDR; left out") || strings.Contains(got, "listed") || ctx.Err() != nil {
		t.Errorf("%q, %v", got, ctx.Err())
	}
	log.Error("can't follow", "err", io.ErrUnexpectedEOF)
	if context.Cause(ctx) != io.ErrUnexpectedEOF {
		t.Errorf("the command goes on: %v", context.Cause(ctx))
	}
}
