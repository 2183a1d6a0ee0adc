// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/model"
)

// How long the kernel may lag behind the API: before load balancers are told, which is kube-proxy's limit, and before
// other nodes are to announce this one's LoadBalancer addresses.
const (
	proxyHealthTimeout = time.Minute
	announceTimeout    = 10 * time.Second
)

// proxyHealth answers for the node as a whole, as kube-proxy does on port 10256: cloud load balancers ask it whether to
// send here what is for Services with externalTrafficPolicy Cluster (KEP-3836). Paths, codes, headers and bodies are
// kube-proxy's.
type proxyHealth struct {
	healthz, livez *prometheus.CounterVec

	mu       sync.Mutex
	inForce  bool      // the tables are, be they an earlier agent's
	complete bool      // they have held what the API said
	since    time.Time // since when they lag behind; zero if they don't
	updated  time.Time // when they last did not
	eligible bool      // the node is there, and neither being deleted nor about to be
}

func newProxyHealth() *proxyHealth {
	counter := func(name, what string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: "Answers of the " + what + " endpoint, by status code."}, []string{"code"})
	}
	return &proxyHealth{healthz: counter("kubeproxy_proxy_healthz_total", "healthz"), livez: counter("kubeproxy_proxy_livez_total", "livez")}
}

// behind notes that there is something to bring to the kernel.
func (h *proxyHealth) behind() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.since.IsZero() {
		h.since = time.Now()
	}
}

// upToDate notes that the kernel holds all.
func (h *proxyHealth) upToDate() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.since, h.updated, h.inForce, h.complete = time.Time{}, time.Now(), true, true
}

func (h *proxyHealth) node(n *model.Node) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.eligible = n != nil && !n.Deleting && !n.ToBeDeleted
}

// late tells whether the kernel lags behind for longer than the limit. Callers hold mu.
func (h *proxyHealth) late(limit time.Duration) bool {
	return !h.since.IsZero() && time.Since(h.since) > limit
}

func (h *proxyHealth) forwards() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.inForce && !h.late(announceTimeout)
}

// handler serves /healthz, which fails for a node that is about to go as well, and /livez, which does not: nobody is to
// restart the agent for that.
func (h *proxyHealth) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { h.answer(w, h.healthz, true) })
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { h.answer(w, h.livez, false) })
	return mux
}

// proxyHealthAnswer is kube-proxy's.
type proxyHealthAnswer struct {
	LastUpdated  time.Time                     `json:"lastUpdated"`
	CurrentTime  time.Time                     `json:"currentTime"`
	NodeEligible *bool                         `json:"nodeEligible,omitempty"`
	Healthy      bool                          `json:"healthy"`
	Status       map[string]proxyFamilysHealth `json:"status,omitempty"`
}

type proxyFamilysHealth struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

func (h *proxyHealth) answer(w http.ResponseWriter, count *prometheus.CounterVec, ofNode bool) {
	h.mu.Lock()
	out := proxyHealthAnswer{LastUpdated: h.updated, CurrentTime: time.Now(), Healthy: h.complete && !h.late(proxyHealthTimeout)}
	eligible := h.eligible
	h.mu.Unlock()
	code := http.StatusOK
	if ofNode {
		out.NodeEligible = &eligible
	}
	if out.Status = make(map[string]proxyFamilysHealth); !out.LastUpdated.IsZero() {
		for _, f := range bothFamilies {
			out.Status[f.String()] = proxyFamilysHealth{out.LastUpdated, out.Healthy}
		}
	}
	if !out.Healthy || ofNode && !eligible {
		code = http.StatusServiceUnavailable
	} else {
		out.LastUpdated = out.CurrentTime // as kube-proxy: who is up to date was so just now
	}
	count.WithLabelValues(strconv.Itoa(code)).Inc()
	body, err := json.Marshal(out)
	if err != nil { // of times and words it never comes
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(body)
}
