// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"testing"
	"time"
)

// A new leader whose watch does not show yet what the last one wrote gives nobody an address that the last one gave to
// another: it waits until it has seen all that was there when its term began.
func TestNoAddressIsGivenTwiceByALeaderThatIsBehind(t *testing.T) {
	f := newFakeAPI(t)
	const lease = "/apis/coordination.k8s.io/v1/namespaces/weft/leases/weft-controller"
	f.put(lease, fmt.Sprintf(`{"spec":{"holderIdentity":"last","leaseDurationSeconds":3600,"acquireTime":"%[1]s","renewTime":"%[1]s","leaseTransitions":1}}`,
		time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")))
	f.put(poolPath+"p", smallish)
	f.put(svcPath+"older", `{"spec":{"type":"ClusterIP"}}`)
	f.put(svcPath+"younger", plain)
	f.put(svcPath+"older", plain)
	next := start(t, f, "next", lbOpts)
	eventually(t, "the next leader has the whole picture", func() bool { return next.Ready() == nil })

	// The last leader saw the younger one first, and did this before it went.
	f.setBehind("services")
	const given = `"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1","ipMode":"VIP"}]}}`
	f.put(svcPath+"younger", `{"metadata":{"annotations":{"weft.dev/allocated-from":"p"},"finalizers":["service.kubernetes.io/load-balancer-cleanup"]},`+
		given+`,`+plain[1:])
	f.mu.Lock()
	lists := f.lists
	f.mu.Unlock()
	f.delete(lease)
	eventually(t, "the next leader asks what there is, or writes", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.lists > lists || len(f.writes) > 0
	})
	f.setBehind("")

	f.wants(t, "older", "192.0.2.2/VIP | "+finalize+" | p")
	f.wants(t, "younger", "192.0.2.1/VIP | "+finalize+" | p")
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.history {
		if e.prefix != svcPath+"older" {
			continue
		}
		status, _ := e.obj["status"].(object)
		balancer, _ := status["loadBalancer"].(object)
		in, _ := balancer["ingress"].([]any)
		if len(in) > 0 && in[0].(object)["ip"] == "192.0.2.1" {
			t.Errorf("the address of the younger one was given away: %v", e.obj["status"])
		}
	}
}
