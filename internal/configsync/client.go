// SPDX-License-Identifier: Apache-2.0

package configsync

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// retryMin and retryMax bound the pause between two rounds over the controllers' addresses.
const (
	retryMin = 50 * time.Millisecond
	retryMax = 500 * time.Millisecond
	dialTime = 2 * time.Second // for one address
)

// Client is a pod's end of the stream: a source of tables for a gateway.
type Client struct {
	// Server is the controllers' "host:port"; each of the host's addresses is tried.
	Server string
	// Identity is the directory with the pod's client certificate: the mounted Secret, read at each connection.
	Identity string
	// Keep is the file in memory-backed storage in which the configuration is kept; "" keeps none.
	Keep string
	// Pod names the pod in the controller's log.
	Pod string
	Log *slog.Logger
}

// Run calls apply with each update, in order, until ctx is done: first, and at once, with the configuration that was
// kept, if any. An update is confirmed when apply returns. It never gives up on finding a controller; the error is
// nil.
func (c *Client) Run(ctx context.Context, apply func(*route.Update) error) error {
	s := &session{c: c, apply: apply}
	if c.Keep != "" {
		s.keep = &keeper{path: c.Keep}
		defer s.keep.close()
		s.keep.tidy()
		switch u, err := s.keep.load(); {
		case err != nil:
			c.Log.Warn("what was kept of the configuration can't be used", "error", err)
		case u != nil:
			c.Log.Info("starting with the configuration that was kept", "revision", u.Revision)
			s.take(u)
		}
	}
	pause := retryMin
	for ctx.Err() == nil {
		var failed []error
		for _, addr := range s.addresses(ctx, &failed) {
			heard, err := s.talk(ctx, addr)
			if ctx.Err() != nil {
				return nil
			}
			if heard {
				c.Log.Warn("the controller is gone: serving what there is, looking for the next", "controller", addr, "reason", err)
				pause, failed, s.said = retryMin, nil, ""
				break // the next round may begin at once, with the addresses as they are now
			}
			failed = append(failed, fmt.Errorf("%s: %w", addr, err))
		}
		if err := errors.Join(failed...); err != nil {
			s.complain(err)
			pause = min(2*pause, retryMax)
		}
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-ctx.Done():
		}
	}
	return nil
}

// session is what a Client remembers from one connection to the next.
type session struct {
	c     *Client
	apply func(*route.Update) error
	keep  *keeper

	epoch    string
	revision uint64
	digest   digest
	sums     map[route.Ref]digest
	unserved map[string]string // listeners that are not served, as last told

	known []string // the addresses last looked up
	said  string   // the failure last logged, and when
	at    time.Time
}

// addresses looks up where controllers are; while that can't be done, those that were known.
func (s *session) addresses(ctx context.Context, failed *[]error) []string {
	host, port, err := net.SplitHostPort(s.c.Server)
	if err != nil {
		*failed = append(*failed, err)
		return nil
	}
	lookup, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	hosts, err := net.DefaultResolver.LookupHost(lookup, host)
	if err != nil {
		*failed = append(*failed, err)
		return s.known
	}
	s.known = s.known[:0]
	for _, h := range hosts {
		s.known = append(s.known, net.JoinHostPort(h, port))
	}
	rand.Shuffle(len(s.known), func(i, j int) { s.known[i], s.known[j] = s.known[j], s.known[i] })
	return slices.Clone(s.known)
}

// complain logs why no controller answers, and the same thing not again for a minute.
func (s *session) complain(err error) {
	if text := err.Error(); text != s.said || time.Since(s.at) > time.Minute {
		s.said, s.at = text, time.Now()
		s.c.Log.Info("no controller answers; trying again", "error", strings.ReplaceAll(text, "\n", "; "))
	}
}

// talk takes updates from one controller until the connection ends. heard tells whether the controller said anything.
func (s *session) talk(ctx context.Context, addr string) (heard bool, err error) {
	data := make(map[string][]byte)
	for _, key := range []string{CertificateKey, PrivateKeyKey, AuthorityKey} {
		if data[key], err = os.ReadFile(filepath.Join(s.c.Identity, key)); err != nil {
			return false, err
		}
	}
	conf, err := clientConfig(data)
	if err != nil {
		return false, fmt.Errorf("%s: %w", s.c.Identity, err)
	}
	dial, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(dial, "tcp", addr)
	if err != nil {
		return false, err
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(dial); err != nil {
		return false, fmt.Errorf("TLS: %w", err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	h := hello{Version: version, Pod: s.c.Pod, Epoch: s.epoch, Revision: s.revision, Digest: s.digest, Unserved: s.unserved}
	if err := writeFrame(conn, h, maxAnswer); err != nil {
		return false, err
	}
	for {
		var u update
		if err := readFrame(conn, &u, maxUpdate); err != nil {
			return heard, err
		}
		heard = true
		_ = conn.SetDeadline(time.Now().Add(patience))
		a := ack{Revision: s.revision, Unserved: s.unserved}
		if u.Epoch != "" {
			a = s.take(&u)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		if err := writeFrame(conn, a, maxAnswer); err != nil {
			return heard, err
		}
		if u.Epoch != "" && s.digest != u.Digest {
			// Something was lost on the way, here or there: begin anew with all of it.
			s.epoch = ""
			return heard, errors.New("the tables' digest is not the controller's")
		}
	}
}

// take applies an update and keeps it.
func (s *session) take(u *update) ack {
	a := ack{Revision: u.Revision}
	if u.Complete {
		s.digest, s.sums = digest{}, make(map[route.Ref]digest, len(u.Resources))
	}
	for _, ref := range u.Removed {
		s.digest.toggle(s.sums[ref])
		delete(s.sums, ref)
	}
	for _, r := range u.Resources {
		s.digest.toggle(s.sums[r.ref()]) // of none it is zero
		sum := r.sum()
		s.digest.toggle(sum)
		s.sums[r.ref()] = sum
	}
	tables, bad := decode(u)
	if err := s.apply(tables); err != nil {
		bad = append(bad, err)
	}
	for _, err := range bad {
		a.report(err)
	}
	s.unserved = a.Unserved
	s.epoch, s.revision = u.Epoch, u.Revision
	if s.keep != nil {
		if err := s.keep.add(u); err != nil {
			s.c.Log.Warn("a restart without a controller would serve an older configuration", "error", err)
		}
	}
	return a
}

// maxErrors is how many failures of an update, and how many listeners that are not served, are reported.
const maxErrors = 64

// report takes an error apart into what it joins.
func (a *ack) report(err error) {
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range all.Unwrap() {
			a.report(one)
		}
		return
	}
	if l, ok := errors.AsType[*route.ListenerError](err); ok && len(a.Unserved) < maxErrors {
		if a.Unserved == nil {
			a.Unserved = make(map[string]string)
		}
		a.Unserved[l.Listener] = fmt.Sprintf("%.400s", strings.ReplaceAll(l.Err.Error(), "\n", "; "))
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if len(a.Errors) < maxErrors {
			a.Errors = append(a.Errors, fmt.Sprintf("%.400s", line))
		}
	}
}
