// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

// eventuallyFrom wants every request answered, in time, and tells by which pods.
func eventuallyFrom(t *testing.T, p place, url string, ok func(answers) bool) {
	t.Helper()
	labtest.Eventually(t, 20*time.Second, func() error {
		if a := p.get(t, "-n", "6", "-q", url); a.failed > 0 || !ok(a) {
			return fmt.Errorf("from %s to %s: %s", p.name, url, a.text)
		}
		return nil
	})
}

func anybody(answers) bool { return true }

// Load balancer IPs, and external IPs that are a node's own address, for clients of every kind, an endpoint itself
// among them; loadBalancerSourceRanges, which hold for both families.
func TestExternalKinds(t *testing.T) {
	ns := lab.Namespace(t)
	own := nodeIPs(t, "node2")
	lab.Apply(t, ns, loadBalancerPool(t, "kinds", "172.30.0.200-172.30.0.203", "fd00:30::200-fd00:30::203")+
		deployment("web", 1, "")+client("c", "node1", "app: c")+service("web", "web", fmt.Sprintf(`
  type: LoadBalancer
  externalIPs: ["%s"]
  ports:
  - {name: http, port: 8088, targetPort: http}
  - {name: raw, port: 9000, targetPort: 9000, protocol: UDP}`, strings.Join(own, `", "`))))
	lab.Rollout(t, ns, "deployment/web")
	lab.WaitFor(t, ns, "condition=Ready", "pod/c")
	var web, home string
	for n, pods := range podsOf(t, ns, "web") {
		web, home = pods[0], n
	}
	ips := lbAddrs(t, ns, "web", 2)
	everyone := []place{fromHost("outside"), fromPod(ns, "c"), fromPod(ns, web), fromHost(home), fromHost("node3")}
	for _, ip := range append(slices.Clone(ips), own...) {
		for _, from := range everyone {
			for _, url := range []string{"http://" + hostport(ip, 8088) + "/", "udp://" + hostport(ip, 9000)} {
				eventuallyFrom(t, from, url, anybody)
			}
		}
	}
	ranges := func(list string) {
		t.Helper()
		lab.Kubectl(t, "patch", "service", "-n", ns, "web", "-p", `{"spec":{"loadBalancerSourceRanges":`+list+`}}`)
	}
	closed := func(ip string) {
		t.Helper()
		labtest.Eventually(t, 20*time.Second, func() error {
			if a := fromHost("outside").get(t, "-timeout", "300ms", "http://"+hostport(ip, 8088)+"/"); a.answered > 0 {
				return fmt.Errorf("%s admits those that it should not: %s", ip, a.text)
			}
			return nil
		})
	}
	ranges(`["10.255.0.0/16"]`)
	closed(ips[0])
	closed(ips[1])
	for _, ip := range own { // the list is for load balancer IPs
		eventuallyFrom(t, fromHost("outside"), "http://"+hostport(ip, 8088)+"/", anybody)
	}
	ranges(`["172.30.0.2/32"]`)
	eventuallyFrom(t, fromHost("outside"), "http://"+hostport(ips[0], 8088)+"/", anybody)
	closed(ips[1])
	ranges(`["172.30.0.2/32", "fd00:30::2/128"]`)
	for _, ip := range ips {
		eventuallyFrom(t, fromHost("outside"), "http://"+hostport(ip, 8088)+"/", anybody)
	}
}

// A Service changes its ports, its families and its type, and is made anew under its name: each time it has what it
// should have.
func TestServiceChanges(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("web", 1, "")+client("c", "node1", "app: c")+
		strings.Replace(service("web", "web", httpPort), "PreferDualStack", "SingleStack", 1))
	lab.Rollout(t, ns, "deployment/web")
	lab.WaitFor(t, ns, "condition=Ready", "pod/c")
	c, outside := fromPod(ns, "c"), fromHost("outside")
	patch := func(spec string) {
		t.Helper()
		lab.Kubectl(t, "patch", "service", "-n", ns, "web", "-p", `{"spec":`+spec+`}`)
	}
	ips := clusterIPs(t, ns, "web")
	if len(ips) != 1 {
		t.Fatalf("single-stack, with cluster IPs %v", ips)
	}
	at := func(port int) string { return "http://" + hostport(ips[0], port) + "/" }
	eventuallyFrom(t, c, at(80), anybody)

	patch(`{"ports":[{"name":"http","port":80,"$patch":"delete"},{"name":"http","port":81,"targetPort":"http"}]}`)
	eventuallyFrom(t, c, at(81), anybody)
	labtest.Eventually(t, 10*time.Second, func() error {
		if a := c.get(t, at(80)); a.answered > 0 {
			return fmt.Errorf("port 80 is gone, and answers: %s", a.text)
		}
		return nil
	})

	patch(`{"ipFamilyPolicy":"PreferDualStack"}`)
	ips = clusterIPs(t, ns, "web")
	if len(ips) != 2 {
		t.Fatalf("dual-stack, with cluster IPs %v", ips)
	}
	eventuallyFrom(t, c, "http://"+hostport(ips[1], 81)+"/", anybody)
	patch(`{"ipFamilyPolicy":"SingleStack","ipFamilies":["IPv4"],"clusterIPs":["` + ips[0] + `"]}`)
	labtest.Eventually(t, 20*time.Second, func() error {
		if a := c.get(t, "-timeout", "300ms", "http://"+hostport(ips[1], 81)+"/"); a.answered > 0 {
			return fmt.Errorf("the IPv6 cluster IP is gone, and answers: %s", a.text)
		}
		return nil
	})
	eventuallyFrom(t, c, at(81), anybody)

	var port int
	node := nodeIPs(t, "node3")[0]
	for _, typ := range []string{"NodePort", "ClusterIP", "NodePort", "LoadBalancer", "NodePort"} {
		patch(`{"type":"` + typ + `"}`)
		if typ == "ClusterIP" {
			labtest.Eventually(t, 10*time.Second, func() error {
				if a := outside.get(t, "-timeout", "700ms", "http://"+hostport(node, port)+"/"); a.sent == 0 || a.answered > 0 {
					return fmt.Errorf("the node port is gone, and answers: %s", a.text)
				}
				return nil
			})
			continue
		}
		if _, err := fmt.Sscan(lab.Get(t, ns, "service/web", "{.spec.ports[0].nodePort}"), &port); err != nil {
			t.Fatalf("type %s: %v", typ, err)
		}
		eventuallyFrom(t, outside, "http://"+hostport(node, port)+"/", anybody)
		eventuallyFrom(t, c, at(81), anybody)
	}

	// Under the same name and with the same cluster IP, but other pods.
	lab.Kubectl(t, "delete", "service", "-n", ns, "web")
	lab.Apply(t, ns, deployment("other", 1, "")+strings.Replace(service("web", "other", "  clusterIP: "+ips[0]+"\n"+httpPort), "PreferDualStack", "SingleStack", 1))
	lab.Rollout(t, ns, "deployment/other")
	eventuallyFrom(t, c, at(80), func(a answers) bool {
		for p := range a.pods {
			if !strings.HasPrefix(p, "other-") {
				return false
			}
		}
		return true
	})
}

// trafficDistribution PreferSameZone, and PreferClose, its older name: clients stay in their zone while it has
// endpoints, and go elsewhere when it has none.
func TestZones(t *testing.T) {
	ns := lab.Namespace(t)
	const label = "topology.kubernetes.io/zone"
	zones := map[string]string{"node1": "east", "node2": "east", "node3": "west"}
	for n, z := range zones {
		lab.Kubectl(t, "label", "node", n, label+"="+z, "--overwrite")
		after(t, "label", "node", n, label+"-")
	}
	var apps strings.Builder
	for _, n := range []string{"node2", "node3"} {
		apps.WriteString(strings.Replace(deployment("web-"+n, 1, ""), "      containers:", "      nodeSelector: {kubernetes.io/hostname: "+n+"}\n      containers:", 1))
	}
	for name, d := range map[string]string{"zone": "PreferSameZone", "close": "PreferClose"} {
		apps.WriteString(strings.Replace(service(name, "x", "  trafficDistribution: "+d+"\n"+httpPort), "{app: x}", "{tier: web}", 1))
	}
	lab.Apply(t, ns, apps.String()+client("c", "node1", "app: c"))
	for _, n := range []string{"node2", "node3"} {
		lab.Rollout(t, ns, "deployment/web-"+n)
		lab.Kubectl(t, "patch", "deployment", "-n", ns, "web-"+n, "--type=merge", "-p", `{"spec":{"template":{"metadata":{"labels":{"tier":"web"}}}}}`)
		lab.Rollout(t, ns, "deployment/web-"+n)
	}
	lab.WaitFor(t, ns, "condition=Ready", "pod/c")
	only := func(node string) func(answers) bool {
		return func(a answers) bool {
			for p := range a.pods {
				if !strings.HasPrefix(p, "web-"+node) {
					return false
				}
			}
			return len(a.pods) > 0
		}
	}
	for _, name := range []string{"zone", "close"} {
		for _, ip := range clusterIPs(t, ns, name) {
			url := "http://" + hostport(ip, 80) + "/"
			eventuallyFrom(t, fromPod(ns, "c"), url, only("node2"))
			eventuallyFrom(t, fromHost("node3"), url, only("node3"))
		}
	}
	lab.Kubectl(t, "scale", "deployment/web-node2", "-n", ns, "--replicas=0")
	for _, name := range []string{"zone", "close"} {
		eventuallyFrom(t, fromPod(ns, "c"), "http://"+hostport(clusterIPs(t, ns, name)[0], 80)+"/", only("node3"))
	}
}

// A mistake in a Service is said on the Service, once for the whole cluster, and keeps nobody else from being served.
func TestServiceMistakes(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, deployment("web", 1, "")+service("first", "web", "  externalIPs: [198.51.100.44]\n"+httpPort))
	lab.Rollout(t, ns, "deployment/web")
	labtest.Eventually(t, 10*time.Second, func() error { // the older Service has it
		if a := fromHost("node1").get(t, "http://198.51.100.44/"); a.answered != 1 {
			return fmt.Errorf("%s", a.text)
		}
		return nil
	})
	lab.Apply(t, ns, service("second", "web", "  externalIPs: [198.51.100.44]\n"+httpPort))
	labtest.Eventually(t, 20*time.Second, func() error {
		out := lab.Kubectl(t, "get", "events", "-n", ns, "--field-selector", "involvedObject.name=second,reason=FrontendConflict",
			"-o", `jsonpath={range .items[*]}{.source.component} {.count} {.message}{"\n"}{end}`)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != 1 || !strings.HasPrefix(lines[0], "weft-controller 1 ") || !strings.Contains(lines[0], "198.51.100.44:80/TCP is served by Service "+ns+"/first") {
			return fmt.Errorf("events about second: %q", out)
		}
		return nil
	})
	for _, name := range []string{"first", "second"} {
		eventuallyFrom(t, fromHost("node2"), "http://"+hostport(clusterIPs(t, ns, name)[0], 80)+"/", anybody)
	}
}
