// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"slices"
	"sync"
	"time"
)

// Session tickets (RFC 8446 section 2.2, RFC 5077) are sealed with keys that have nothing to do with certificates and
// change by and by, so that a stolen one opens little. Replicas that are told the same secrets take each other's.
const (
	ticketRotation = 12 * time.Hour // of secrets of the server's own
	ticketEpochs   = 3              // how many of those open tickets; the newest seals them
)

// TicketSecret is what session tickets are sealed with from a time on, until that of the next one.
type TicketSecret struct {
	From   time.Time
	Secret [32]byte
}

// ticketSecrets is what the keys of all listeners are made from.
type ticketSecrets struct {
	mu      sync.Mutex
	own     [][32]byte // newest first
	made    time.Time  // the newest of them
	secrets [][32]byte // in use: the first one seals
	epoch   int        // counts their changes, from 1
}

// rotate sees to it that the right secret seals: of those that are shared, or else one of the server's own.
func (s *ticketSecrets) rotate(shared []TicketSecret, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := sealing(shared, now)
	if next == nil {
		if len(s.own) == 0 || now.Sub(s.made) >= ticketRotation {
			var secret [32]byte
			_, _ = rand.Read(secret[:]) // never fails
			s.own = append([][32]byte{secret}, s.own[:min(len(s.own), ticketEpochs-1)]...)
			s.made = now
		}
		next = s.own
	}
	if !slices.Equal(next, s.secrets) {
		s.secrets = slices.Clone(next)
		s.epoch++
	}
}

// sealing sorts secrets: the one that seals now comes first, and all open, also one whose time has yet to come: another
// replica's clock may be ahead. It is nil when none seals.
func sealing(shared []TicketSecret, now time.Time) (out [][32]byte) {
	seals := -1
	for i, s := range shared {
		if !s.From.After(now) && (seals < 0 || s.From.After(shared[seals].From)) {
			seals = i
		}
	}
	if seals < 0 {
		return nil
	}
	out = append(out, shared[seals].Secret)
	for i, s := range shared {
		if i != seals {
			out = append(out, s.Secret)
		}
	}
	return out
}

// seal sees to it that a listener has the newest keys. Listeners that check clients in different ways, or have
// different names, never take each other's sessions.
func (s *ticketSecrets) seal(l *listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.tls.epoch == s.epoch {
		return
	}
	l.tls.epoch = s.epoch
	check, err := json.Marshal(l.conf.TLS.Client)
	if err != nil {
		l.tls.conf.SessionTicketsDisabled = true // can't be: strings and numbers
		return
	}
	keys := make([][32]byte, len(s.secrets))
	for i, secret := range s.secrets {
		h := hmac.New(sha256.New, secret[:])
		h.Write([]byte(l.conf.Key + "\x00"))
		h.Write(check)
		h.Sum(keys[i][:0])
	}
	l.tls.conf.SetSessionTicketKeys(keys)
}

// rotateTickets looks for what session tickets are to be sealed with now.
func (s *Server) rotateTickets(now time.Time) {
	var shared []TicketSecret
	if s.conf.TicketSecrets != nil {
		shared = s.conf.TicketSecrets()
	}
	s.tickets.rotate(shared, now)
}
