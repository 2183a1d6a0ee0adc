// SPDX-License-Identifier: Apache-2.0

// Package health serves what a kubelet and a Prometheus ask of every weft process: /livez, /healthz, /readyz and
// /metrics. It imports the standard library and the Prometheus client only.
package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Handler answers 200 "ok", or 503 with the error's text. /healthz is /livez under its older name, as kubelet and
// kube-proxy have it.
func Handler(metrics prometheus.Gatherer, live, ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /livez", answer(live))
	mux.Handle("GET /healthz", answer(live))
	mux.Handle("GET /readyz", answer(ready))
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	return mux
}

func answer(check func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := check(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
}

// Serve answers on addr ("host:port") until ctx is done; then the error is nil.
func Serve(ctx context.Context, addr string, h http.Handler) error {
	l, err := Listen(addr)
	if err != nil {
		return err
	}
	return ServeOn(ctx, l, h)
}

// Listen opens the port for ServeOn, for who must know early that it can be had, or which it is.
func Listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("metrics and health endpoint: %w", err)
	}
	return l, nil
}

// ServeOn is Serve on a port that is open. It closes it.
func ServeOn(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
