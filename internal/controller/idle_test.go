// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// processorTime is what this process has used of processors.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// With many routes and a pod that serves them, and nothing that changes, the controller does next to nothing: what is
// measured is it, the API server of the test, and the pod. Other processes on the machine don't count.
func TestIdleWithManyRoutes(t *testing.T) {
	const routes, watched = 300, 3 * time.Second // with 5,000 it is the same 13 ms a second, and takes long to begin
	f := newFakeAPI(t)
	f.put("/api/v1/namespaces/default", `{"kind":"Namespace"}`)
	f.put(svcPath+"cart", `{"apiVersion":"v1","kind":"Service","spec":{"ports":[{"port":80}]}}`)
	// As an earlier leader has left them.
	var conditions []any
	for typ, message := range map[string]string{"Accepted": "the route is attached", "ResolvedRefs": "all references are resolved"} {
		conditions = append(conditions, object{"type": typ, "status": "True", "reason": typ, "message": message, "observedGeneration": 1,
			"lastTransitionTime": "2026-01-01T00:00:00Z"})
	}
	status := string(encode(object{"parents": []any{object{"controllerName": "weft.dev/gateway", "parentRef": object{"name": "web"}, "conditions": conditions}}}))
	for i := range routes {
		f.put(fmt.Sprintf("%sr%d", routePath, i), fmt.Sprintf(`{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"generation":1},
			"spec":{"parentRefs":[{"name":"web"}],"hostnames":["r%d.example.com"],"rules":[{"backendRefs":[{"name":"cart","port":80}]}]},"status":%s}`, i, status))
	}
	_, addr := startGateways(t, f, "one")
	readyGateway(t, f, plainListener, "a")
	var served atomic.Int64
	namedPod(t, f, "a", secretPath+"web-weft", addr, func(u *route.Update) error {
		served.Add(int64(len(u.Routes)))
		return nil
	})
	eventually(t, "the pod has all routes, and the Gateway is programmed", func() bool {
		return served.Load() >= routes && condition(f.get(gatewayPath+"web"), "Programmed") == "True Programmed"
	})
	// What comes after the last status, such as its echo from the API server, is over when a second costs little.
	settled := func() bool {
		before := processorTime(t)
		time.Sleep(time.Second)
		return processorTime(t)-before < 200*time.Millisecond
	}
	eventually(t, "all is done", settled)
	before, written := processorTime(t), len(f.written())
	time.Sleep(watched)
	used := processorTime(t) - before
	t.Logf("%d routes: %v of processor time in %v", routes, used, watched)
	if used > watched/8 {
		t.Errorf("idle, it used %v of processor time in %v", used, watched)
	}
	if n := len(f.written()) - written; n > 0 {
		t.Errorf("idle, it wrote %d times", n)
	}
}
