// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/weft-net/weft/internal/model"
)

// TestProxyHealth: what kube-proxy's healthz port answers, which load balancers have parsers for.
func TestProxyHealth(t *testing.T) {
	h := newProxyHealth()
	h.node(&model.Node{})
	ask := func(when, path string, want int, eligible any) {
		t.Helper()
		w := httptest.NewRecorder()
		h.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		var body map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
			t.Fatalf("%s: %s: %v in %s", when, path, err, w.Body)
		}
		if healthy := want == http.StatusOK || eligible == false; body["healthy"] != healthy {
			t.Errorf("%s: %s: %s, want healthy %v", when, path, w.Body, healthy)
		}
		if status, _ := body["status"].(map[string]any); len(status) != 0 && len(status) != 2 {
			t.Errorf("%s: %s: status of each family: %s", when, path, w.Body)
		}
		if w.Code != want || body["nodeEligible"] != eligible {
			t.Errorf("%s: %s: %d %s, want %d, eligible %v", when, path, w.Code, w.Body, want, eligible)
		}
		if got := w.Header().Get("Content-Type") + " " + w.Header().Get("X-Content-Type-Options"); got != "application/json nosniff" {
			t.Errorf("%s: headers %s", when, got)
		}
		if body["lastUpdated"] == "" || body["currentTime"] == "" || (body["lastUpdated"] == body["currentTime"]) != (want == http.StatusOK) {
			t.Errorf("%s: %s: times %s", when, path, w.Body)
		}
	}
	both := func(when string, want int, forwards bool) {
		t.Helper()
		ask(when, "/healthz", want, true)
		ask(when, "/livez", want, nil)
		if h.forwards() != forwards {
			t.Errorf("%s: forwards %v", when, !forwards)
		}
	}
	late := func(d time.Duration) { h.since = time.Now().Add(-d) }
	both("at first", 503, false)
	h.inForce = true
	both("with an earlier agent's tables", 503, true)
	h.behind()
	h.upToDate()
	both("up to date", 200, true)
	h.behind()
	both("a change has come", 200, true)
	late(announceTimeout + time.Second)
	both("some time behind", 200, false)
	late(proxyHealthTimeout + time.Second)
	both("long behind", 503, false)
	h.behind()
	both("another change does not make it better", 503, false)
	h.upToDate()
	both("up to date again", 200, true)

	for _, n := range []*model.Node{nil, {ToBeDeleted: true}, {Meta: model.Meta{Deleting: true}}} {
		h.node(n)
		ask("the node is about to go", "/healthz", 503, false)
		ask("the node is about to go", "/livez", 200, nil)
	}
	h.node(&model.Node{})
	both("it stays", 200, true)
	if ok, bad := testutil.ToFloat64(h.healthz.WithLabelValues("200")), testutil.ToFloat64(h.healthz.WithLabelValues("503")); ok != 5 || bad != 7 {
		t.Errorf("counted %v answers of 200 and %v of 503, want 5 and 7", ok, bad)
	}
}

// TestForwards: a new agent on a node that has tables forwards from the start; on one that has none, as after a reboot,
// only when they are in force.
func TestForwards(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	if c.agent.Forwards() {
		t.Error("without tables")
	}
	c.update(t, newShop().delta())
	if !c.agent.Forwards() {
		t.Error("with tables")
	}
	c.kill()
	c.start(t)
	if !c.agent.Forwards() {
		t.Error("with an earlier agent's tables")
	}
}
