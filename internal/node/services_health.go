// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
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
	addrs   []netip.Prefix
	inForce func() bool

	mu      sync.Mutex
	servers map[model.Name]*healthCheck
}

type healthCheck struct {
	name  model.Name
	port  uint16
	http  *http.Server
	local int
	at    *healthChecks
}

func newHealthChecks(cfg ServicesConfig, inForce func() bool) *healthChecks {
	return &healthChecks{node: cfg.Node, log: cfg.Log, events: cfg.Events, addrs: cfg.NodePorts, inForce: inForce,
		servers: make(map[model.Name]*healthCheck)}
}

// set opens, closes and updates servers to match.
func (h *healthChecks) set(want map[model.Name]service.Health) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, c := range h.servers {
		if want[name].Port != c.port {
			_ = c.http.Close()
			delete(h.servers, name)
		}
	}
	for name, w := range want {
		c := h.servers[name]
		if c == nil {
			var err error
			if c, err = h.open(name, w.Port); err != nil {
				h.log.Error("can't serve a health check", "service", name, "port", w.Port, "err", err)
				h.events(model.Event{APIVersion: "v1", Kind: "Service", Name: name, Warning: true, Reason: "FailedToStartServiceHealthcheck",
					Message: fmt.Sprintf("node %s can't listen on healthCheckNodePort %d: %v; load balancers will take the node for unhealthy: free the port there", h.node, w.Port, err)})
				continue
			}
			h.servers[name] = c
		}
		c.local = w.Local
	}
}

func (h *healthChecks) open(name model.Name, port uint16) (*healthCheck, error) {
	c := &healthCheck{name: name, port: port, at: h}
	c.http = &http.Server{Handler: c, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	addrs, err := h.listenAddrs()
	if err != nil {
		return nil, err
	}
	var open []net.Listener
	for _, a := range addrs {
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", net.JoinHostPort(a, strconv.Itoa(int(port))))
		if err != nil {
			for _, l := range open {
				_ = l.Close()
			}
			return nil, err
		}
		open = append(open, l)
	}
	for _, l := range open {
		go func() { _ = c.http.Serve(l) }() // ends with http.ErrServerClosed when the check is closed
	}
	return c, nil
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
		c.name.Namespace, c.name.Name, local, healthy)
}

func (h *healthChecks) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, c := range h.servers {
		_ = c.http.Close()
		delete(h.servers, name)
	}
}
