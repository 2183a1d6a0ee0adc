// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/service"
)

// healthChecks answers the health checks of load balancers for Services with externalTrafficPolicy Local: each has a
// node port of its own that says how many of its endpoints are on this node. Path, codes, headers and body are
// kube-proxy's, whose users have parsers for them.
type healthChecks struct {
	node    string
	log     *slog.Logger
	events  func(model.Event)
	addrs   []netip.Prefix // of the node addresses to listen on; empty: all
	inForce func() bool

	mu      sync.Mutex
	servers map[model.Name]*healthCheck
	closed  bool
}

// healthCheck is one of them: open, or to be opened, on some of its addresses at least.
type healthCheck struct {
	service model.Name
	uid     string
	port    uint16
	http    *http.Server
	on      map[string]net.Listener
	local   int
	at      *healthChecks

	pause time.Duration // before the next try to open what could not be opened; 0: all is open
	retry *time.Timer
}

// checkRetry bounds the pauses between tries to open a health check.
const (
	checkRetryMin = time.Second
	checkRetryMax = time.Minute
)

func newHealthChecks(cfg ServicesConfig, addrs []netip.Prefix, inForce func() bool) *healthChecks {
	return &healthChecks{node: cfg.Node, log: cfg.Log, events: cfg.Events, addrs: addrs, inForce: inForce,
		servers: make(map[model.Name]*healthCheck)}
}

// set opens, closes and updates servers to match.
func (h *healthChecks) set(want map[model.Name]service.Health) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	for name, c := range h.servers {
		if want[name].Port != c.port {
			h.drop(c)
		}
	}
	for name, w := range want {
		c := h.servers[name]
		if c == nil {
			c = &healthCheck{service: name, uid: w.UID, port: w.Port, at: h, on: make(map[string]net.Listener)}
			c.http = &http.Server{Handler: c, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
			h.servers[name] = c
			h.open(c)
		}
		c.local = w.Local
	}
}

// listenOn says which of the node's addresses to listen on, and looks which there are.
func (h *healthChecks) listenOn(addrs []netip.Prefix) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.addrs = addrs
	for _, c := range h.servers {
		h.open(c)
	}
}

// open listens wherever the check does not listen yet, and no longer where it should not. What fails is tried again,
// after pauses that grow; the Service's owner hears of it once. Callers hold mu.
func (h *healthChecks) open(c *healthCheck) {
	addrs, err := h.listenAddrs()
	errs := []error{err}
	for a, l := range c.on {
		if err == nil && !slices.Contains(addrs, a) {
			_ = l.Close()
			delete(c.on, a)
		}
	}
	for _, a := range addrs {
		if c.on[a] != nil {
			continue
		}
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", net.JoinHostPort(a, strconv.Itoa(int(c.port))))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.on[a] = l
		go func() { _ = c.http.Serve(l) }() // ends when the check is closed, or this listener is
	}
	err = errors.Join(errs...)
	if c.retry != nil {
		c.retry.Stop()
	}
	switch {
	case err == nil && c.pause > 0:
		c.pause = 0
		h.log.Info("the health check is served now", "service", c.service, "port", c.port)
	case err != nil:
		if c.pause == 0 {
			h.log.Error("can't serve a health check; trying again and again", "service", c.service, "port", c.port, "err", err)
			h.events(model.Event{APIVersion: "v1", Kind: "Service", Name: c.service, UID: c.uid, Warning: true, Reason: "FailedToStartServiceHealthcheck",
				Message: fmt.Sprintf("node %s can't listen on healthCheckNodePort %d: %v; load balancers will take the node for unhealthy: free the port there", h.node, c.port, err)})
		}
		c.pause = min(max(2*c.pause, checkRetryMin), checkRetryMax)
		c.retry = time.AfterFunc(c.pause, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.servers[c.service] == c {
				h.open(c)
			}
		})
	}
}

// drop closes a check. Callers hold mu.
func (h *healthChecks) drop(c *healthCheck) {
	if c.retry != nil {
		c.retry.Stop()
	}
	_ = c.http.Close()
	for _, l := range c.on {
		_ = l.Close() // which the server does not know yet, if it has just been opened
	}
	delete(h.servers, c.service)
}

// listenAddrs are the addresses to listen on: all, or those of the node that may have node ports.
func (h *healthChecks) listenAddrs() ([]string, error) {
	if len(h.addrs) == 0 {
		return []string{""}, nil
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, a := range own {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		for _, r := range h.addrs {
			if r.Contains(p.Addr()) && !p.Addr().IsLinkLocalUnicast() {
				out = append(out, p.Addr().String())
				break
			}
		}
	}
	return out, nil
}

// ServeHTTP implements http.Handler.
func (c *healthCheck) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	c.at.mu.Lock()
	local := c.local
	c.at.mu.Unlock()
	healthy := c.at.inForce()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(local))
	if local == 0 || !healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintf(w, "{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %v\n}",
		c.service.Namespace, c.service.Name, local, healthy)
}

func (h *healthChecks) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, c := range h.servers {
		h.drop(c)
	}
}
