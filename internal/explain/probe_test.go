// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

func ask(t *testing.T, w *World, from, to string, proto model.Protocol) *Answer {
	t.Helper()
	f, err := w.ParseTarget(from, "shop", false)
	if err != nil {
		t.Fatal(err)
	}
	d, err := w.ParseTarget(to, "shop", true)
	if err != nil {
		t.Fatal(err)
	}
	a, err := w.Why(f, d, proto)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Each way that the model describes is a question to the kernel: at the Service's address and at its endpoints'.
func TestProbes(t *testing.T) {
	w := load(t, "testdata/shop.yaml")
	for _, tc := range []struct{ from, to, want string }{
		{"web", "cart", "TCP 10.96.0.20:80 Service shop/cart pass\nTCP 10.1.1.3:8080 pod shop/cart-1 pass\n"},
		{"web", "lost", "TCP 10.96.0.22:80 Service shop/lost refuse\n"},
		{"web", "pod/db-0:5432", "TCP 10.1.2.4:5432 pod shop/db-0 vanish\n"},
		{"web", "example.com:443", ""}, // nobody knows its address
		{"web", "cart:81", ""},
	} {
		got := ""
		for _, p := range ask(t, w, tc.from, tc.to, model.TCP).Probes {
			got += fmt.Sprintf("%s %s %s %s\n", p.Protocol, p.Address, p.About, p.Expected)
		}
		if got != tc.want {
			t.Errorf("%s to %s: got\n%swant\n%s", tc.from, tc.to, got, tc.want)
		}
	}
}

func TestProbeConclude(t *testing.T) {
	for _, tc := range []struct {
		expected Expectation
		protocol string
		beyond   bool
		server   bool
		outcome  string
		want     Agreement
	}{
		{Pass, "TCP", false, true, "answered", Agree},
		{Pass, "TCP", false, true, "refused", Agree}, // nobody listens
		{Pass, "TCP", false, true, "silent", Disagree},
		{Pass, "TCP", false, false, "silent", Unclear},
		{Pass, "TCP", true, true, "silent", Unclear},
		{Pass, "UDP", false, true, "silent", Unclear},
		{Pass, "UDP", false, true, "answered", Agree},
		{Pass, "TCP", false, true, "unreachable", Unclear},
		{Pass, "SCTP", false, true, "failed", Unclear},
		{Vanish, "TCP", false, true, "silent", Agree},
		{Vanish, "TCP", false, true, "answered", Disagree},
		{Vanish, "TCP", false, true, "refused", Disagree},
		{Vanish, "UDP", false, true, "answered", Disagree},
		{Refuse, "TCP", false, false, "refused", Agree},
		{Refuse, "UDP", false, false, "unreachable", Agree},
		{Refuse, "TCP", false, false, "silent", Disagree},
		{Refuse, "TCP", false, false, "answered", Disagree},
		{Either, "TCP", false, true, "silent", Unclear},
	} {
		p := Probe{Expected: tc.expected, Protocol: tc.protocol, beyond: tc.beyond, server: tc.server}
		p.Conclude(tc.outcome, "the kernel's words")
		if p.Agreement != tc.want || p.Text == "" {
			t.Errorf("%+v: %s (%s)", tc, p.Agreement, p.Text)
		}
	}
}

func TestDisagreementIsLoud(t *testing.T) {
	a := ask(t, load(t, "testdata/shop.yaml"), "web", "pod/db-0:5432", model.TCP)
	a.Probes[0].Conclude("answered", "")
	var b bytes.Buffer
	Print(&b, a)
	if !strings.Contains(b.String(), "*** KERNEL AND MODEL DISAGREE (1 probe)") || len(a.Disagreements()) != 1 {
		t.Errorf("%s", &b)
	}
}
