// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"sync"
	"time"
)

// Session tickets (RFC 8446 section 2.2, RFC 5077) are sealed with keys that live as long as the process, whatever
// becomes of certificates, and change by and by, so that a stolen one opens little.
const (
	ticketRotation = 12 * time.Hour
	ticketEpochs   = 3 // how many keys open tickets; the newest seals them
)

// ticketSecrets is what the keys of all listeners are made from.
type ticketSecrets struct {
	mu      sync.Mutex
	secrets [][32]byte // newest first
	made    time.Time
	epoch   int // counts rotations, from 1
}

// rotate makes a new secret when the newest is old enough.
func (s *ticketSecrets) rotate(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.secrets) > 0 && now.Sub(s.made) < ticketRotation {
		return
	}
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // never fails
	s.secrets = append([][32]byte{secret}, s.secrets[:min(len(s.secrets), ticketEpochs-1)]...)
	s.made = now
	s.epoch++
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
