// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// A route gets to pods before its status gets to the API server.
func TestConfigurationGoesFirst(t *testing.T) {
	f := newFakeAPI(t)
	_, addr := startGatewaysWith(t, f, "one", time.Minute)
	readyGateway(t, f, plainListener, "a")
	accepted := func(name string) string { return condition(f.get(routePath+name), "Accepted", "parents", 0) }
	var mu sync.Mutex
	before := map[string]string{} // each route's status when the pod got it first: a pod that comes back gets all once more
	namedPod(t, f, "a", secretPath+"web-weft", addr, func(u *route.Update) error {
		mu.Lock()
		defer mu.Unlock()
		for _, r := range u.Routes {
			if name := r.Name[len("default/"):]; !has(before, name) {
				before[name] = accepted(name)
			}
		}
		return nil
	})
	eventually(t, "programmed", func() bool { return condition(f.get(gatewayPath+"web"), "Programmed") == "True Programmed" })
	for i := range 20 {
		name := fmt.Sprint("r", i)
		f.put(routePath+name, `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"generation":1},"spec":{"parentRefs":[{"name":"web"}],"rules":[{}]}}`)
		eventually(t, "the status", func() bool { return accepted(name) != "" })
		eventually(t, "the pod has it", func() bool { mu.Lock(); defer mu.Unlock(); return has(before, name) })
		if before[name] != "" {
			t.Errorf("%s had its status before the pod had it: %s", name, before[name])
		}
	}
}

func has(m map[string]string, key string) bool {
	_, ok := m[key]
	return ok
}

// A pod that does not confirm does not hold statuses up.
func TestStatusesDoNotWaitForSlowPods(t *testing.T) {
	f := newFakeAPI(t)
	_, addr := startGateways(t, f, "one")
	readyGateway(t, f, plainListener, "a")
	release := make(chan struct{})
	_, stop := namedPod(t, f, "a", secretPath+"web-weft", addr, func(u *route.Update) error {
		if len(u.Routes) > 0 {
			<-release
		}
		return nil
	})
	defer stop()
	defer close(release)
	eventually(t, "programmed", func() bool { return condition(f.get(gatewayPath+"web"), "Programmed") == "True Programmed" })
	for i := range 3 {
		path := fmt.Sprint(routePath, "r", i)
		f.put(path, `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"generation":1},"spec":{"parentRefs":[{"name":"web"}],"rules":[{}]}}`)
		eventually(t, "the status", func() bool { return condition(f.get(path), "Accepted", "parents", 0) == "True Accepted" })
	}
}
