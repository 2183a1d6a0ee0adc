// SPDX-License-Identifier: Apache-2.0

package configsync

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// The secrets of session tickets are there before they seal, seal in turn, open for a while after, and go. A renewed
// certificate leaves them alone, and they it.
func TestTicketsRotate(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	ca, _, _, err := LoadAuthority(nil, begin)
	if err != nil {
		t.Fatal(err)
	}
	var data map[string][]byte
	dir := t.TempDir()
	var known []Ticket
	sealing := map[[32]byte]bool{}
	writes := 0
	for now := begin; now.Before(begin.Add(20 * 24 * time.Hour)); now = now.Add(time.Hour) {
		old := data
		var changed bool
		if data, changed, err = ca.Client("g", data, now); err != nil {
			t.Fatal(err)
		}
		if changed {
			writes++
		}
		if old != nil && !bytes.Equal(old[CertificateKey], data[CertificateKey]) {
			t.Fatalf("%s: the certificate is renewed with the tickets", now)
		}
		if err := os.WriteFile(filepath.Join(dir, SessionTicketsKey), data[SessionTicketsKey], 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := ReadTickets(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) < 2 || len(all) > ticketsKept+4 {
			t.Fatalf("%s: %d secrets", now, len(all))
		}
		seals := -1
		for i, s := range all {
			if !s.From.After(now) {
				seals = i
			}
		}
		if seals < 0 || now.Sub(all[seals].From) > ticketLife+time.Hour {
			t.Fatalf("%s: the sealing secret is number %d of %v", now, seals, all)
		}
		if !sealing[all[seals].Secret] {
			sealing[all[seals].Secret] = true
			if known != nil && !bytes.Contains(old[SessionTicketsKey], []byte(all[seals].From.Format(time.RFC3339))) {
				t.Fatalf("%s: the secret was not known an hour before it seals", now)
			}
		}
		known = all
	}
	if n := len(sealing); n < 38 || n > 41 {
		t.Errorf("%d secrets in 20 days", n)
	}
	if writes > 45 {
		t.Errorf("%d writes in 20 days", writes)
	}
	later, _, err := ca.Client("g", data, begin.Add(leafLife*3/4))
	if err != nil || bytes.Equal(later[CertificateKey], data[CertificateKey]) {
		t.Fatalf("the certificate is not renewed: %v", err)
	}
	after, _ := parseTickets(later[SessionTicketsKey])
	if !slices.ContainsFunc(after, func(t Ticket) bool { return t.Secret == known[len(known)-1].Secret }) {
		t.Error("a renewed certificate takes the tickets' secrets along")
	}
	if next := after[len(after)-1].From.Sub(begin.Add(leafLife * 3 / 4)); next < ticketLead-time.Second {
		t.Errorf("after a long time without controller the next secret seals within %s", next)
	}
	for _, broken := range []string{"x", "2026-01-01T00:00:00Z AAAA\n", "2126-01-01T00:00:00Z AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"} {
		out, changed := renewTickets([]byte(broken), begin)
		if all, err := parseTickets(out); !changed || err != nil || len(all) != 2 || all[0].From.After(begin) {
			t.Errorf("%q becomes %q", broken, out)
		}
	}
}

func TestTicketsOfOlderSecret(t *testing.T) {
	if all, err := ReadTickets(t.TempDir()); len(all) != 0 || err != nil {
		t.Errorf("%v, %v", all, err)
	}
}
