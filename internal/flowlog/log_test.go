// SPDX-License-Identifier: Apache-2.0

package flowlog

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func event(name string, v Verdict) Event {
	return Event{
		Verdict: v, Node: "n1", Direction: "ingress", Protocol: "TCP", Port: 80,
		Source:      End{Kind: "Outside", Addr: netip.MustParseAddr("192.0.2.1")},
		Destination: End{Kind: "Pod", Namespace: "a", Name: name, Addr: netip.MustParseAddr("10.0.0.1")},
		Policies:    []string{"NetworkPolicy a/deny"}, Reason: "because",
	}
}

func TestLogKeepsTheLatest(t *testing.T) {
	l := New(3)
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		l.Add(event(n, Dropped))
	}
	var got []string
	_ = l.Read(context.Background(), false, func(e *Event, _ uint64) error {
		got = append(got, e.Destination.Name)
		return nil
	})
	if strings.Join(got, "") != "cde" {
		t.Errorf("kept %v", got)
	}
}

func TestSlowReaderIsToldWhatItMissed(t *testing.T) {
	l := New(2)
	l.Add(event("0", Dropped))
	missed := uint64(0)
	stop := errors.New("enough")
	err := l.Read(context.Background(), true, func(e *Event, lost uint64) error {
		missed += lost
		switch e.Destination.Name {
		case "0":
			for _, n := range []string{"1", "2", "3", "4"} {
				l.Add(event(n, Dropped))
			}
		case "4":
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || missed != 2 {
		t.Errorf("missed %d, err %v; want 2 missed", missed, err)
	}
}

func TestServeAndQuery(t *testing.T) {
	l := New(10)
	l.Add(event("one", Dropped))
	l.Add(event("two", Admitted))
	socket := filepath.Join(t.TempDir(), "flows.sock")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	served := make(chan error, 1)
	serveCtx, stop := context.WithCancel(ctx)
	go func() { served <- l.Serve(serveCtx, socket) }()

	query := func(f Filter, follow bool, each func(*Event) error) error {
		for {
			err := Query(ctx, socket, f, follow, each)
			if err == nil || !strings.Contains(err.Error(), "no agent answers") || ctx.Err() != nil {
				return err
			}
			time.Sleep(time.Millisecond) // the server is about to listen
		}
	}
	for want, f := range map[string]Filter{
		"one two": {}, "two": {Verdict: Admitted}, "one": {Namespace: "a", Pod: "one"}, "": {Namespace: "b"},
	} {
		var got []string
		if err := query(f, false, func(e *Event) error { got = append(got, e.Destination.Name); return nil }); err != nil {
			t.Fatal(err)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%+v gives %v, want %q", f, got, want)
		}
	}
	enough := errors.New("enough")
	err := query(Filter{Verdict: Dropped}, true, func(e *Event) error {
		if e.Destination.Name == "one" {
			go l.Add(event("three", Dropped))
			return nil
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Errorf("follow: %v", err)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestFilter(t *testing.T) {
	now := time.Date(2020, 1, 2, 3, 4, 5, 6, time.UTC)
	e := event("db", Dropped)
	e.Time, e.Service = now, "a/database"
	p := netip.MustParsePrefix
	for _, tc := range []struct {
		f    Filter
		want bool
	}{
		{Filter{}, true},
		{Filter{Namespace: "a", Pod: "db", Verdict: Dropped, Direction: "ingress", Protocol: "tcp", Port: 80, Policy: "deny", Service: "database", Addr: p("10.0.0.0/8"), Since: now}, true},
		{Filter{Policy: "a/deny"}, true},
		{Filter{Policy: "b/deny"}, false},
		{Filter{Policy: "den"}, false},
		{Filter{Service: "a/database"}, true},
		{Filter{Service: "db"}, false},
		{Filter{Addr: p("192.0.2.1/32")}, true},
		{Filter{Addr: p("192.0.2.2/32")}, false},
		{Filter{Namespace: "a", Pod: "web"}, false},
		{Filter{Direction: "egress"}, false},
		{Filter{Protocol: "UDP"}, false},
		{Filter{Port: 81}, false},
		{Filter{Since: now.Add(1)}, false},
		{Filter{Verdict: Admitted}, false},
	} {
		if got := tc.f.Matches(&e); got != tc.want {
			t.Errorf("%+v: %v, want %v", tc.f, got, tc.want)
		}
		back, err := filterOf(tc.f.values())
		if err != nil || *back != tc.f {
			t.Errorf("%+v became %+v on its way (%v)", tc.f, back, err)
		}
	}
	for _, bad := range []string{"port=x", "port=70000", "address=1.2.3.4", "since=yesterday"} {
		q, _ := url.ParseQuery(bad)
		if f, err := filterOf(q); err == nil {
			t.Errorf("%s was taken for %+v", bad, f)
		}
	}
}

func TestPrint(t *testing.T) {
	var b bytes.Buffer
	e := event("db", Dropped)
	e.Time = time.Date(2020, 1, 2, 3, 4, 5, 6e6, time.UTC)
	Print(&b, &e, false)
	Print(&b, &e, true)
	want := "03:04:05.006 dropped  ingress 192.0.2.1                          a/db                               TCP/80     NetworkPolicy a/deny\n" +
		"03:04:05.006 dropped  ingress 192.0.2.1                          a/db                               TCP/80     n1             because\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
