// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/weft-net/weft/internal/route"
)

// readyGateway makes a Gateway with listeners, whose Service has an address and the ready pods named.
func readyGateway(t *testing.T, f *fakeAPI, listeners string, pods ...string) {
	t.Helper()
	f.put("/api/v1/namespaces/default", `{"kind":"Namespace"}`)
	putGateway(f, 1, listeners)
	eventually(t, "the Gateway's Service and identity are made", func() bool {
		return f.get(svcPath+"web-weft") != nil && f.get(secretPath+"web-weft") != nil
	})
	svc := f.get(svcPath + "web-weft")
	svc["status"] = object{"loadBalancer": object{"ingress": []any{object{"ip": "192.0.2.1"}}}}
	f.put(svcPath+"web-weft", string(encode(svc)))
	var endpoints []any
	for i, p := range pods {
		endpoints = append(endpoints, object{"addresses": []any{"10.244.0." + string(rune('1'+i))}, "conditions": object{"ready": true, "serving": true},
			"targetRef": object{"kind": "Pod", "name": p, "namespace": "default"}})
	}
	f.put("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/web-weft-x", string(encode(object{
		"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
		"metadata": object{"labels": object{"kubernetes.io/service-name": "web-weft"}},
		"ports":    []any{object{"name": "tcp-80", "port": 61080, "protocol": "TCP"}}, "endpoints": endpoints})))
}

func putGateway(f *fakeAPI, generation int, listeners string) {
	f.put(gatewayPath+"web", string(encode(object{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": object{"generation": generation},
		"spec": object{"gatewayClassName": "weft", "listeners": raw(listeners)}})))
}

const (
	plainListener = `[{"name":"http","port":80,"protocol":"HTTP"}]`
	twoListeners  = `[{"name":"http","port":80,"protocol":"HTTP"},{"name":"more","port":81,"protocol":"HTTP"}]`
)

// A listener is programmed once every pod that is sent clients serves it: one that is ready and cut off does not, nor
// one that could not bind its port.
func TestProgrammedMeansEveryReadyPodServes(t *testing.T) {
	f := newFakeAPI(t)
	_, addr := startGateways(t, f, "one")
	readyGateway(t, f, plainListener, "a", "b")
	var fails atomic.Bool
	serve := func(*route.Update) error {
		if fails.Load() {
			return errors.Join(&route.ListenerError{Listener: "default/web/more", Err: errors.New("address in use")})
		}
		return nil
	}
	namedPod(t, f, "a", secretPath+"web-weft", addr, serve)
	_, stopB := namedPod(t, f, "b", secretPath+"web-weft", addr, func(*route.Update) error { return nil })
	eventually(t, "programmed", func() bool { return condition(f.get(gatewayPath+"web"), "Programmed") == "True Programmed" })

	stopB()
	putGateway(f, 2, twoListeners)
	eventually(t, "the new listener waits for the pod that is cut off", func() bool {
		return strings.Contains(message(f.get(gatewayPath+"web"), "Programmed", "listeners", 1), "no connection to the controller, so they do not have it yet: b")
	})
	if got := condition(f.get(gatewayPath+"web"), "Programmed", "listeners", 0); got != "True Programmed" {
		t.Errorf("the listener that both serve: %s", got)
	}
	namedPod(t, f, "b", secretPath+"web-weft", addr, func(*route.Update) error { return nil })
	eventually(t, "programmed again", func() bool { return condition(f.get(gatewayPath+"web"), "Programmed") == "True Programmed" })

	fails.Store(true)
	putGateway(f, 3, strings.Replace(twoListeners, "81", "82", 1))
	eventually(t, "a port that can't be bound is told of", func() bool {
		return strings.Contains(message(f.get(gatewayPath+"web"), "Programmed", "listeners", 1), "pod a: address in use")
	})
	if got := condition(f.get(gatewayPath+"web"), "Programmed"); got != "False Invalid" {
		t.Errorf("the Gateway: %s", got)
	}
	fails.Store(false)
	putGateway(f, 4, twoListeners)
	eventually(t, "programmed once it is served", func() bool { return condition(f.get(gatewayPath+"web"), "Programmed") == "True Programmed" })
}

// What the API server refuses of a Gateway's parts is told in its condition and an Event, holds up no other part, and
// goes on being tried.
func TestRefusedPartsAreTold(t *testing.T) {
	f := newFakeAPI(t)
	f.setRefuse(deployPath)
	r, addr := startGateways(t, f, "one")
	readyGateway(t, f, plainListener, "a")
	namedPod(t, f, "a", secretPath+"web-weft", addr, func(*route.Update) error { return nil })
	eventually(t, "the condition has the API server's words", func() bool {
		return condition(f.get(gatewayPath+"web"), "Programmed") == "False NoResources" &&
			strings.Contains(message(f.get(gatewayPath+"web"), "Programmed"), "refuses the Gateway's Deployment: exceeded quota: tight.")
	})
	eventually(t, "an event, too", func() bool {
		return strings.Contains(r.events(), "Gateway default/web PartRefused: The API server refuses the Gateway's Deployment: exceeded quota: tight")
	})
	f.setRefuse("")
	eventually(t, "programmed once there is room", func() bool { return condition(f.get(gatewayPath+"web"), "Programmed") == "True Programmed" })
	if n := strings.Count(r.events(), "PartRefused"); n != 1 {
		t.Errorf("told %d times", n)
	}

	// The same for an edit of what is there.
	f.setRefuse(deployPath)
	f.put("/apis/weft.dev/v1alpha1/namespaces/default/gatewayconfigs/big", `{"apiVersion":"weft.dev/v1alpha1","kind":"GatewayConfig","spec":{"replicas":9}}`)
	f.put(gatewayPath+"web", string(encode(object{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": object{"generation": 2},
		"spec": object{"gatewayClassName": "weft", "listeners": raw(plainListener), "infrastructure": raw(`{"parametersRef":{"group":"weft.dev","kind":"GatewayConfig","name":"big"}}`)}})))
	eventually(t, "the refused edit shows", func() bool {
		return condition(f.get(gatewayPath+"web"), "Programmed") == "False NoResources"
	})
}

// A listener is not programmed before the Service has its port, whatever keeps it from having it; one that the Service has
// goes on being so.
func TestProgrammedMeansTheServiceHasThePort(t *testing.T) {
	f := newFakeAPI(t)
	r, addr := startGateways(t, f, "one")
	readyGateway(t, f, plainListener, "a")
	applied, _ := namedPod(t, f, "a", secretPath+"web-weft", addr, func(*route.Update) error { return nil })
	programmed := func() bool { return condition(f.get(gatewayPath+"web"), "Programmed") == "True Programmed" }
	eventually(t, "programmed", programmed)
	f.setBusy(svcPath)
	putGateway(f, 2, twoListeners)
	eventually(t, "what lasts is told in the API server's words", func() bool {
		gw := f.get(gatewayPath + "web")
		return strings.Contains(message(gw, "Programmed"), "refuses the Gateway's Service: etcd is busy") &&
			condition(gw, "Programmed", "listeners", 1) == "False Pending" && strings.Contains(r.events(), "Gateway default/web PartRefused")
	})
	f.setBusy("")
	eventually(t, "programmed once the Service has the port", programmed)

	f.setRefuse(svcPath)
	putGateway(f, 3, strings.Replace(twoListeners, "81", "82", 1))
	eventually(t, "a quota's words", func() bool {
		gw := f.get(gatewayPath + "web")
		return condition(gw, "Programmed") == "False NoResources" && condition(gw, "Programmed", "listeners", 1) == "False Pending" &&
			condition(gw, "Programmed", "listeners", 0) == "True Programmed" // which the Service has, and the pods serve
	})
	f.setRefuse("")
	eventually(t, "programmed once it is let", programmed)

	before := len(applied())
	notAccepted(t, f, 4, twoListeners)
	eventually(t, "the pod has the new listener", func() bool { return len(applied()) > before })
	eventually(t, "the new listener waits for its port", func() bool {
		return message(f.get(gatewayPath+"web"), "Programmed", "listeners", 1) == "the gateway's Service does not have its port 81 yet"
	})
	if got := condition(f.get(gatewayPath+"web"), "Programmed", "listeners", 0); got != "True Programmed" {
		t.Errorf("the listener that the Service has: %s", got)
	}
}

// notAccepted makes the Gateway one whose parametersRef is mistyped.
func notAccepted(t *testing.T, f *fakeAPI, generation int, listeners string) {
	t.Helper()
	f.put(gatewayPath+"web", string(encode(object{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": object{"generation": generation},
		"spec": object{"gatewayClassName": "weft", "listeners": raw(listeners), "infrastructure": raw(`{"parametersRef":{"group":"weft.dev","kind":"GatewayConfig","name":"typo"}}`)}})))
	eventually(t, "not accepted", func() bool { return condition(f.get(gatewayPath+"web"), "Accepted") == "False InvalidParameters" })
}

// A Gateway that is no longer accepted serves on: what its pods need of what it was given is kept up.
func TestNotAcceptedAnyMoreIsKeptUp(t *testing.T) {
	const pdbPath = "/apis/policy/v1/namespaces/default/poddisruptionbudgets/"
	f := newFakeAPI(t)
	r, _ := startGateways(t, f, "one")
	readyGateway(t, f, plainListener, "a")
	eventually(t, "all parts are made", func() bool { return f.get(deployPath+"web-weft") != nil && f.get(pdbPath+"web-weft") != nil })
	was := string(encode(f.get(deployPath + "web-weft")["spec"]))

	notAccepted(t, f, 2, twoListeners)
	for _, path := range []string{deployPath, pdbPath, secretPath} {
		f.delete(path + "web-weft")
		eventually(t, path+" has it again", func() bool { return f.get(path+"web-weft") != nil })
	}
	if got := string(encode(f.get(deployPath + "web-weft")["spec"])); got != was {
		t.Errorf("the Deployment is %s\nwas %s", got, was)
	}
	if got := string(encode(f.get(svcPath + "web-weft")["spec"])); strings.Contains(got, "tcp-81") {
		t.Errorf("the Service has what was never accepted: %s", got)
	}

	// The next leader does not know what it asked for: the identity is renewed, and all else stays as it is.
	r.stop()
	secret := f.get(secretPath + "web-weft")
	secret["data"] = object{}
	f.put(secretPath+"web-weft", string(encode(secret)))
	before := len(f.written())
	startGateways(t, f, "two")
	eventually(t, "the identity is whole again", func() bool { return len(f.get(secretPath + "web-weft")["data"].(object)) > 0 })
	for _, w := range f.written()[before:] {
		if strings.HasSuffix(w, "/web-weft") && w != "PATCH "+secretPath+"web-weft" {
			t.Errorf("written by the next leader: %s", w)
		}
	}
	for _, path := range []string{deployPath, pdbPath, svcPath} {
		if f.get(path+"web-weft") == nil {
			t.Errorf("%s has it no longer", path)
		}
	}
}
