// SPDX-License-Identifier: Apache-2.0

package flowlog

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// DefaultSocket is where a node's agent serves its flow events.
const DefaultSocket = "/run/weft/flows.sock"

// Serve answers on a unix socket that only its owner may use, until ctx is done; then the error is nil. What is left
// of an agent that died under the same path is replaced.
func (l *Log) Serve(ctx context.Context, socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return fmt.Errorf("flow events: %w", err)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("flow events: replace %s: %w", socket, err)
	}
	lis, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("flow events: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		_ = lis.Close()
		return fmt.Errorf("flow events: %w", err)
	}
	srv := &http.Server{Handler: l, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("flow events: %w", err)
	}
	return nil
}

// ServeHTTP writes events as lines of JSON: those kept, and with ?follow=true those that come.
func (l *Log) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f, err := filterOf(q)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out, enc := http.NewResponseController(w), json.NewEncoder(w)
	_ = out.Flush()
	follow := q.Get("follow") == "true"
	_ = l.Read(r.Context(), follow, func(e *Event, _ uint64) error {
		if !f.Matches(e) {
			return nil
		}
		if err := enc.Encode(e); err != nil || !follow {
			return err
		}
		return out.Flush()
	})
}

// Query asks an agent of this machine by its socket and calls f with each event until ctx is done, the agent has no
// more, or f fails.
func Query(ctx context.Context, socket string, filter Filter, follow bool, f func(*Event) error) error {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	q := filter.values()
	if follow {
		q.Set("follow", "true")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no agent answers on %s (is `weft node` running on this machine?): %w", socket, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the agent on %s does not understand the question (%s): is it older than this weft?", socket, resp.Status)
	}
	err = Decode(bufio.NewReader(resp.Body), f)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Decode reads events from lines of JSON and calls f with each until the input ends or f fails.
func Decode(r *bufio.Reader, f func(*Event) error) error {
	dec := json.NewDecoder(r)
	for dec.More() {
		var e Event
		if err := dec.Decode(&e); err != nil {
			return fmt.Errorf("read flow events: %w", err)
		}
		if err := f(&e); err != nil {
			return err
		}
	}
	return nil
}
