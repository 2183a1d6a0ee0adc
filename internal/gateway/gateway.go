// SPDX-License-Identifier: Apache-2.0

// Package gateway assembles `weft gateway`: a source of tables (a file, or the controller's stream), the proxy that
// serves them, metrics and health. It may import proxy, route, health and the standard library, Prometheus and YAML.
package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/internal/health"
	"github.com/weft-net/weft/internal/proxy"
	"github.com/weft-net/weft/internal/route"
)

// Source is where a gateway's tables come from. Run calls apply with each update, in order, until ctx is done; apply
// returns when the update is served, so its return is the confirmation of the revision. An error of apply tells what
// of the update can't be served; the rest is, and the source goes on. An error of Run ends the gateway: a source that
// loses its other end tries again by itself, while the gateway serves what it has.
type Source interface {
	Run(ctx context.Context, apply func(*route.Update) error) error
}

// Config is what a gateway needs.
type Config struct {
	Proxy   proxy.Config
	Source  Source
	Listen  string        // address of /metrics, /livez, /readyz; "" is none
	Drain   time.Duration // how long requests under way may take when the gateway is told to end
	Delay   time.Duration // before draining, so that nobody is sent here any more
	Metrics *prometheus.Registry
	Log     *slog.Logger
}

// Run serves until ctx is done, then drains.
func Run(ctx context.Context, c Config) error {
	server := proxy.New(c.Proxy)
	defer server.Close()
	if err := c.Metrics.Register(server); err != nil {
		return err
	}
	var served, ending atomic.Bool
	ready := func() error {
		switch {
		case ending.Load():
			return errors.New("ending")
		case !served.Load():
			return errors.New("no configuration has come yet")
		}
		return nil
	}
	// The health endpoint outlives ctx until requests have drained.
	healthCtx, stopHealth := context.WithCancel(context.WithoutCancel(ctx))
	defer stopHealth()
	g, gctx := errgroup.WithContext(ctx)
	if c.Listen != "" {
		g.Go(func() error {
			return health.Serve(healthCtx, c.Listen, withConfig(health.Handler(c.Metrics, func() error { return nil }, ready), server))
		})
	}
	g.Go(func() error {
		defer stopHealth()
		said := "" // what was last not served: some of it stands from one update to the next
		err := c.Source.Run(gctx, func(u *route.Update) error {
			err := server.Apply(u)
			first := !served.Load()
			if first || u.Complete { // reading all there is leaves many times what is kept
				debug.FreeOSMemory()
			}
			served.Store(true)
			was := said
			if said = ""; err != nil {
				said = err.Error()
			}
			switch {
			case err != nil && said == was: // all that is new is served, and what was told of is not
				c.Log.Debug("change served", "revision", u.Revision)
			case err != nil:
				c.Log.Warn("part of the configuration can't be served", "revision", u.Revision, "error", err)
			case first || u.Complete:
				c.Log.Info("configuration served", "revision", u.Revision)
			default: // there may be hundreds a second
				c.Log.Debug("change served", "revision", u.Revision)
			}
			return err
		})
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("configuration: %w", err)
		}
		ending.Store(true)
		if c.Delay > 0 {
			c.Log.Info("ending: waiting until no new connections are sent here", "for", c.Delay)
			time.Sleep(c.Delay)
		}
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.Drain)
		defer cancel()
		return server.Drain(drain)
	})
	return g.Wait()
}

// withConfig adds /config: the tables that are served, for people in the pod. Others are refused: what routes and
// policies say may tell more than their hosts' clients should know.
func withConfig(h http.Handler, server *proxy.Server) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", h)
	mux.HandleFunc("GET /config", func(w http.ResponseWriter, r *http.Request) {
		if from, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !from.Addr().Unmap().IsLoopback() {
			http.Error(w, "the configuration is told to the gateway's own host only: use kubectl port-forward", http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(server.Config()) // fails when the client has left
	})
	return mux
}
