// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// A replica that does not lead follows the API all the same: when the leader is killed, the next one reads nothing first,
// and brings gateways what has changed meanwhile as soon as the Lease is its own.
func TestTheNextLeaderIsWarm(t *testing.T) {
	const routes = 1000
	f := newFakeAPI(t)
	f.put("/api/v1/namespaces/default", `{"kind":"Namespace"}`)
	f.put(svcPath+"cart", `{"apiVersion":"v1","kind":"Service","spec":{"ports":[{"port":80}]}}`)
	put := func(i int, host string) {
		f.put(fmt.Sprintf("%sr%d", routePath, i), fmt.Sprintf(`{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"generation":1},
			"spec":{"parentRefs":[{"name":"web"}],"hostnames":["%s"],"rules":[{"backendRefs":[{"name":"cart","port":80}]}]}}`, host))
	}
	before, _ := startGateways(t, f, "before")
	readyGateway(t, f, plainListener, "a")
	before.stop()
	for i := range routes {
		put(i, fmt.Sprintf("r%d.example.com", i))
	}

	const lease = "/apis/coordination.k8s.io/v1/namespaces/weft/leases/weft-controller"
	renew := func() {
		now := time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")
		f.put(lease, fmt.Sprintf(`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","spec":{"holderIdentity":"killed",
			"leaseDurationSeconds":1,"acquireTime":"%[1]s","renewTime":"%[1]s","leaseTransitions":1}}`, now))
	}
	renew()
	next, addr := startGateways(t, f, "next")
	var mu sync.Mutex
	has, first := map[string]string{}, time.Time{} // the gateway's routes, each with its hostname, and since when
	namedPod(t, f, "a", secretPath+"web-weft", addr, func(u *route.Update) error {
		mu.Lock()
		defer mu.Unlock()
		if first.IsZero() {
			first = time.Now()
		}
		for _, r := range u.Routes {
			has[r.Key] = r.Parents[0].Hostnames[0]
		}
		for _, r := range u.Removed {
			delete(has, r.Key)
		}
		return nil
	})
	eventually(t, "a replica that does not lead has the whole picture", func() bool { renew(); return next.Ready() == nil })
	f.setNoLists()
	put(7, "changed.example.com")
	f.delete(routePath + "r8")
	renew()
	holder := func() string { s, _ := f.get(lease)["spec"].(object)["holderIdentity"].(string); return s }
	eventually(t, "the next one leads", func() bool { return holder() == "next" })
	leads := time.Now()
	eventually(t, "the gateway has the configuration as it is now", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(has) == routes-1 && has["HTTPRoute/default/r7"] == "changed.example.com" && has["HTTPRoute/default/r8"] == ""
	})
	t.Logf("%d routes: a gateway had its configuration %v after the Lease", routes, first.Sub(leads))
}
