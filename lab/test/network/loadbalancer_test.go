// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// loadBalancerPool is an AddressPool of the lab's own network, gone with the test.
func loadBalancerPool(t *testing.T, name string, ranges ...string) string {
	t.Helper()
	after(t, "delete", "addresspool/"+name, "--ignore-not-found")
	return fmt.Sprintf("apiVersion: weft.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: %s}\nspec: {addresses: [%s]}\n---\n", name, `"`+strings.Join(ranges, `", "`)+`"`)
}

// after has kubectl run at the test's end, when the test's own context is over.
func after(t *testing.T, kubectl ...string) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := lab.Run(ctx, append([]string{"kubectl"}, kubectl...)...); err != nil {
			t.Error(err)
		}
	})
}

// lbAddrs waits until the Service has so many addresses.
func lbAddrs(t *testing.T, ns, service string, n int) []string {
	t.Helper()
	var ips []string
	labtest.Eventually(t, 15*time.Second, func() error {
		if ips = addresses(t, ns, "service/"+service, "{.status.loadBalancer.ingress[*].ip}"); len(ips) != n {
			return fmt.Errorf("service %s has %v, want %d addresses", service, ips, n)
		}
		return nil
	})
	return ips
}

// announcers asks `weft addresses` who announces each address.
func announcers(t *testing.T) map[string][]string {
	t.Helper()
	dir, err := labtest.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	// Where an agent does not answer the command fails, and still says what the others announce.
	out, err := lab.Exec(t.Context(), "outside", filepath.Join(dir, "weft"), "addresses", "-o", "json")
	begin := strings.Index(out, "{")
	if begin < 0 {
		t.Fatal(err)
	}
	var view struct {
		Services []struct {
			Addresses []struct {
				Address    string
				Announcers []string
			}
		}
	}
	if err := json.NewDecoder(strings.NewReader(out[begin:])).Decode(&view); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	by := map[string][]string{}
	for _, s := range view.Services {
		for _, a := range s.Addresses {
			by[a.Address] = a.Announcers
		}
	}
	return by
}

// announcer waits until exactly one node announces the address.
func announcer(t *testing.T, ip string) string {
	t.Helper()
	var who []string
	labtest.Eventually(t, 20*time.Second, func() error {
		if who = announcers(t)[ip]; len(who) != 1 {
			return fmt.Errorf("%s is announced by %v", ip, who)
		}
		return nil
	})
	return who[0]
}

// The node that announces an address loses power: within two seconds another answers for it, clients notice nothing
// but a pause, and when the node is back so is the address. An agent that dies or restarts costs nothing at all.
func TestLoadBalancerFailover(t *testing.T) {
	ns := lab.Namespace(t)
	// The endpoints are on node1, so that a power cut elsewhere takes the announcer and nothing else.
	lab.Apply(t, ns, loadBalancerPool(t, "failover", "172.30.0.210-172.30.0.219", "fd00:30::210-fd00:30::219")+
		strings.Replace(deployment("web", 2, ""), "      containers:", "      nodeSelector: {kubernetes.io/hostname: node1}\n      containers:", 1))
	lab.Rollout(t, ns, "deployment/web")
	var ips []string
	var victim string
	for i := 0; victim == "" || victim == "node1"; i++ {
		if i == 10 {
			t.Fatal("ten addresses, and node1 announces them all")
		}
		name := fmt.Sprint("web-", i)
		lab.Apply(t, ns, service(name, "web", fmt.Sprintf("  type: LoadBalancer\n  allocateLoadBalancerNodePorts: false\n  loadBalancerIP: 172.30.0.%d\n", 210+i)+httpPort))
		ips = lbAddrs(t, ns, name, 2)
		victim = announcer(t, ips[0])
	}
	url := "http://" + hostport(ips[0], 80) + "/"
	labtest.Eventually(t, 10*time.Second, func() error {
		if a := fromHost("outside").get(t, url); a.failed > 0 {
			return fmt.Errorf("%s", a.text)
		}
		return nil
	})
	// Where nothing may get lost, as long as TCP waits before it sends again what did: a machine that is busy with a node's
	// start may take as long as half of that.
	const lossless = "900ms"
	traffic := func(timeout string, more ...string) func() answers {
		t.Helper()
		// One request at a time, so that failures count up to the time without an answer.
		tr := lab.Background(t, slices.Concat([]string{"exec", "--in", "outside", "--", lab.Echo("outside"), "get", "-for", "90s", "-interval", "10ms", "-timeout", timeout, "-q"}, more, []string{url})...)
		return func() answers {
			t.Helper()
			out, _ := tr.Stop() // it exits 1 if a request failed: the caller judges
			a := parse(out)
			if a.sent < 50 {
				t.Fatalf("the client did not run: %s", out)
			}
			return a
		}
	}

	// Many at a time: if the address moved, some would be under way, and lost, as the other node can't know their endpoint.
	stop := traffic(lossless, "-c", "8")
	killAgent(t, victim)
	lab.Kubectl(t, "delete", "pod", "-n", "kube-system", "-l", "app.kubernetes.io/component=node", "--field-selector", "spec.nodeName="+victim, "--wait")
	lab.Rollout(t, "kube-system", "daemonset/weft-node")
	if a := stop(); a.failed > 0 {
		t.Errorf("while the agent died and restarted:\n%s", a.text)
	}

	home := func() error { // what an agent that is away for long loses comes back to it
		if who := announcers(t)[ips[0]]; !slices.Equal(who, []string{victim}) {
			return fmt.Errorf("%s is announced by %v, want %s", ips[0], who, victim)
		}
		return nil
	}
	labtest.Eventually(t, 20*time.Second, home)
	stop = traffic("200ms")
	if _, err := lab.Run(t.Context(), "node", "kill", victim); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, 20*time.Second, func() error {
		if who := announcers(t)[ips[0]]; len(who) != 1 || who[0] == victim {
			return fmt.Errorf("%s is announced by %v", ips[0], who)
		}
		return nil
	})
	a := stop()
	// Each that failed took 200 ms and the next began 10 ms later: from the first to the last there was no answer.
	if pause := time.Duration(a.failed-1) * 210 * time.Millisecond; a.failed == 0 || pause > 2*time.Second {
		t.Errorf("no answer for %s, want at most 2 s:\n%s", pause, a.text)
	} else {
		t.Logf("no answer for %s", pause)
	}
	stop = traffic(lossless)
	if _, err := lab.Run(t.Context(), "node", "start", victim); err != nil {
		t.Fatal(err)
	}
	lab.WaitFor(t, "default", "condition=Ready", "node/"+victim)
	lab.Rollout(t, "kube-system", "daemonset/weft-node")
	labtest.Eventually(t, 30*time.Second, home)
	// The node takes the address back only when it forwards what comes to it: at most what is under way gets lost.
	if a := stop(); a.failed > 1 {
		t.Errorf("while the node came back:\n%s", a.text)
	}
}

// externalTrafficPolicy Local: the address is announced where the endpoints are, follows them, and the client's
// address is seen.
func TestLoadBalancerLocal(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, loadBalancerPool(t, "local", "172.30.0.220-172.30.0.229", "fd00:30::220-fd00:30::229")+deployment("web", 1, "")+
		service("web", "web", "  type: LoadBalancer\n  externalTrafficPolicy: Local\n"+httpPort))
	lab.Rollout(t, ns, "deployment/web")
	ips := lbAddrs(t, ns, "web", 2)
	outside := []string{"172.30.0.2", "fd00:30::2"}
	check := func() {
		t.Helper()
		labtest.Eventually(t, 30*time.Second, func() error {
			by := announcers(t)
			for home := range podsOf(t, ns, "web") {
				for i, ip := range ips {
					if !slices.Equal(by[ip], []string{home}) {
						return fmt.Errorf("%s is announced by %v, the pod is on %s", ip, by[ip], home)
					}
					if a := fromHost("outside").get(t, "http://"+hostport(ip, 80)+"/"); a.answered != 1 || !slices.Equal(a.clients, outside[i:i+1]) {
						return fmt.Errorf("want the client %s: %s", outside[i], a.text)
					}
				}
			}
			return nil
		})
	}
	check()
	for home := range podsOf(t, ns, "web") {
		lab.Kubectl(t, "cordon", home)
		after(t, "uncordon", home)
	}
	lab.Kubectl(t, "rollout", "restart", "deployment/web", "-n", ns)
	lab.Rollout(t, ns, "deployment/web")
	labtest.Eventually(t, 60*time.Second, func() error {
		if pods := podsOf(t, ns, "web"); len(pods) != 1 {
			return fmt.Errorf("pods: %v", pods)
		}
		return nil
	})
	check()
}

// What a user can ask for: an address by number, one address for two Services, another class left alone; the
// finalizer, and the answers to what can't be had.
func TestLoadBalancerRequests(t *testing.T) {
	ns := lab.Namespace(t)
	const condition = `{range .status.conditions[?(@.type=="weft.dev/AddressAssigned")]}{.status} {.reason} {.message}{end}`
	const pool = "requests"
	const share = "  annotations: {weft.dev/share-key: k, weft.dev/load-balancer-ips: 172.30.0.233}\n"
	noted := func(s, annotations string) string { return strings.Replace(s, "spec:\n", annotations+"spec:\n", 1) }
	lab.Apply(t, ns, loadBalancerPool(t, pool, "172.30.0.230-172.30.0.239")+deployment("web", 1, "")+
		noted(annotatable(service("a", "web", "  type: LoadBalancer\n"+httpPort)), share)+
		noted(annotatable(service("b", "web", "  type: LoadBalancer\n  ports: [{name: raw, port: 9000, targetPort: 9000}]\n")), share)+
		service("taken", "web", "  type: LoadBalancer\n  loadBalancerIP: 172.30.0.233\n"+httpPort)+
		service("other", "web", "  type: LoadBalancer\n  loadBalancerClass: example.com/other\n"+httpPort))
	lab.Rollout(t, ns, "deployment/web")
	for _, name := range []string{"a", "b"} {
		if ips := lbAddrs(t, ns, name, 1); ips[0] != "172.30.0.233" {
			t.Errorf("service %s has %v, want what it asks for", name, ips)
		}
	}
	for _, url := range []string{"http://172.30.0.233/", "tcp://172.30.0.233:9000"} {
		labtest.Eventually(t, 10*time.Second, func() error {
			if a := fromHost("outside").get(t, url); a.failed > 0 {
				return fmt.Errorf("%s", a.text)
			}
			return nil
		})
	}
	labtest.Eventually(t, 10*time.Second, func() error {
		out := lab.Kubectl(t, "get", "events", "-n", ns, "--field-selector", "involvedObject.name=taken", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(out, "has 172.30.0.233: to share it") {
			return fmt.Errorf("events about taken: %q", out)
		}
		if got := lab.Get(t, ns, "service/taken", condition); !strings.HasPrefix(got, "False AddressUnavailable ") {
			return fmt.Errorf("condition of taken: %q", got)
		}
		return nil
	})
	if got := lab.Get(t, ns, "service/other", "{.metadata.finalizers}{.status.loadBalancer.ingress}{.metadata.annotations.weft\\.dev/allocated-from}"); got != "" {
		t.Errorf("another class's Service was touched: %s", got)
	}
	if got := lab.Get(t, ns, "service/a", "{.metadata.finalizers[*]} {.status.loadBalancer.ingress[*].ipMode}"); got != "service.kubernetes.io/load-balancer-cleanup VIP" {
		t.Errorf("service a: %q", got)
	}
	lab.Kubectl(t, "delete", "service", "-n", ns, "a", "b", "--timeout=20s")
	if ips := lbAddrs(t, ns, "taken", 1); ips[0] != "172.30.0.233" {
		t.Errorf("the address that was freed went to nobody: %v", ips)
	}
	if got := lab.Get(t, ns, "service/taken", condition); got != `True AddressAssigned 172.30.0.233 of AddressPool "`+pool+`"` {
		t.Errorf("condition of taken, with an address: %q", got)
	}
	lab.Kubectl(t, "patch", "service", "-n", ns, "taken", "-p", `{"spec":{"type":"ClusterIP"}}`)
	labtest.Eventually(t, 10*time.Second, func() error {
		if got := lab.Get(t, ns, "service/taken", "{.metadata.finalizers}"+condition); strings.TrimSpace(got) != "" {
			return fmt.Errorf("finalizers and condition of what is no load balancer any more: %s", got)
		}
		return nil
	})
}

// annotatable puts a Service's metadata on lines of their own.
func annotatable(s string) string {
	return strings.Replace(strings.Replace(s, "metadata: {name: ", "metadata:\n  name: ", 1), "}\nspec:", "\nspec:", 1)
}
