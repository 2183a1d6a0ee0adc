// SPDX-License-Identifier: Apache-2.0

package configsync

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// SessionTicketsKey is where the pods' Secret has what they seal TLS session tickets with (RFC 8446 section 2.2): the
// same in all pods of a gateway, so that a client goes on at any of them. A line for each secret: from when on it seals,
// and 32 bytes in base64.
const SessionTicketsKey = "session-tickets"

const (
	// ticketLife is how long a secret seals.
	ticketLife = 12 * time.Hour
	// ticketLead is how long before that it is in the Secret at least, so that all pods have it by then: the kubelet
	// brings a changed Secret within two minutes.
	ticketLead = 2 * time.Hour
	// ticketsKept is how many that no longer seal still open.
	ticketsKept = 2
)

// Ticket is a secret that seals session tickets from a time on, until the next one does.
type Ticket struct {
	From   time.Time
	Secret [32]byte
}

// ReadTickets reads the secrets of a directory that the pods' Secret is mounted at, in the order of their times. A
// Secret from before there were any has none.
func ReadTickets(identity string) ([]Ticket, error) {
	path := filepath.Join(identity, SessionTicketsKey)
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out, err := parseTickets(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return out, nil
}

func parseTickets(data []byte) ([]Ticket, error) {
	var out []Ticket
	for in := bufio.NewScanner(bytes.NewReader(data)); in.Scan(); {
		at, secret, _ := strings.Cut(in.Text(), " ")
		var t Ticket
		var err error
		if t.From, err = time.Parse(time.RFC3339, at); err != nil {
			return nil, err
		}
		b, err := base64.StdEncoding.DecodeString(secret)
		if err != nil || copy(t.Secret[:], b) != len(t.Secret) || len(b) != len(t.Secret) {
			return nil, fmt.Errorf("the secret from %s is not 32 bytes in base64", at)
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b Ticket) int { return a.From.Compare(b.From) })
	return out, nil
}

// renewTickets brings secrets up to date: one that seals, the one after that, and those before, as long as they open.
// What can't be read is made anew.
func renewTickets(data []byte, now time.Time) (out []byte, changed bool) {
	all, err := parseTickets(data)
	if err != nil {
		all, changed = nil, true
	}
	add := func(from time.Time) {
		t := Ticket{From: from.UTC().Truncate(time.Second)}
		_, _ = rand.Read(t.Secret[:]) // never fails
		all, changed = append(all, t), true
	}
	if len(all) == 0 || all[0].From.After(now.Add(skew)) {
		all = nil
		add(now.Add(-skew))
	}
	if last := all[len(all)-1].From; last.Before(now.Add(ticketLead)) {
		next := last.Add(ticketLife)
		if soonest := now.Add(ticketLead); next.Before(soonest) {
			next = soonest
		}
		add(next)
	}
	if !changed {
		return data, false
	}
	seals := 0
	for i, t := range all {
		if !t.From.After(now) {
			seals = i
		}
	}
	all = all[max(seals-ticketsKept, 0):]
	for _, t := range all {
		out = fmt.Appendf(out, "%s %s\n", t.From.Format(time.RFC3339), base64.StdEncoding.EncodeToString(t.Secret[:]))
	}
	return out, true
}
