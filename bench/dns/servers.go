// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// server is one of the programs under test.
type server struct {
	name string
	args []string
	env  []string
	port int
	cmd  *exec.Cmd
	log  *os.File
}

// start runs the server on the given core and waits until it answers a name.
func (s *server) start(core int, name, want string, within time.Duration) error {
	var err error
	if s.log, err = os.CreateTemp("", "bench-dns-"+s.name); err != nil {
		return err
	}
	s.cmd = exec.Command("taskset", append([]string{"-c", strconv.Itoa(core)}, s.args...)...)
	s.cmd.Env = append(os.Environ(), s.env...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	for deadline := time.Now().Add(within); ; {
		if got, err := lookup(s.port, name); err == nil && got == want {
			return nil
		}
		if time.Now().After(deadline) {
			out, _ := os.ReadFile(s.log.Name())
			return fmt.Errorf("%s does not answer %s with %s:\n%s", s.name, name, want, out)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (s *server) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	_ = s.log.Close()
	_ = os.Remove(s.log.Name())
}

// cpu is the processor time that the server has used, and what of it in the kernel.
func (s *server) cpu() (all, kernel time.Duration, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+2:]))
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	sys, err2 := strconv.ParseInt(f[12], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, 0, fmt.Errorf("/proc/%d/stat: %q", s.cmd.Process.Pid, data)
	}
	const tick = time.Second / 100 // USER_HZ
	return time.Duration(user+sys) * tick, time.Duration(sys) * tick, nil
}

// memory is the server's resident set and its highest so far, in bytes.
func (s *server) memory() (now, peak int64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		v, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			now = v * 1024
		case "VmHWM:":
			peak = v * 1024
		}
	}
	return now, peak, nil
}

const (
	portWeft    = 15301
	portCoreDNS = 15302
	portKnot    = 15303
	portForward = 15304 // where the names outside the cluster are: a Knot of its own

	portKnotOutside = 15305
)

// setting is what both servers are told of the cluster's names, in their own words.
type setting struct {
	name       string
	pods       string   // insecure, verified or disabled
	namespaces []string // that are shown; none is all
	cached     bool     // CoreDNS's cache, which is for the cluster's own names, too
}

var usual = setting{name: "usual", pods: "insecure", cached: true}

func weftServer(bin, api, dir string, s setting) (*server, error) {
	config := filepath.Join(dir, "dns.yaml")
	text := fmt.Sprintf("pods: %s\nnamespaces: [%s]\n", s.pods, strings.Join(s.namespaces, ", "))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(kubeconfig, fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Config","current-context":"bench",
"contexts":[{"name":"bench","context":{"cluster":"bench","user":"bench"}}],"users":[{"name":"bench","user":{}}],
"clusters":[{"name":"bench","cluster":{"server":%q}}]}`, api), 0o600); err != nil {
		return nil, err
	}
	return &server{name: "weft", port: portWeft, args: []string{bin, "dns", "--kubeconfig", kubeconfig, "--config", config,
		"--listen", fmt.Sprintf("127.0.0.1:%d", portWeft), "--metrics-bind-address", "127.0.0.1:0",
		"--upstream", fmt.Sprintf("127.0.0.1:%d", portForward)}}, nil
}

func coreDNSServer(bin, api, dir string, s setting) (*server, error) {
	namespaces, cache := "", ""
	if len(s.namespaces) > 0 {
		namespaces = "namespaces " + strings.Join(s.namespaces, " ")
	}
	if s.cached {
		cache = "cache 30"
	}
	corefile := filepath.Join(dir, "Corefile")
	// What kubeadm installs, but for ports, and the forwarder.
	if err := os.WriteFile(corefile, fmt.Appendf(nil, `.:%d {
    bind 127.0.0.1
    errors
    health 127.0.0.1:15310 {
       lameduck 5s
    }
    ready 127.0.0.1:15311
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       endpoint %s
       pods %s
       %s
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus 127.0.0.1:15312
    forward . 127.0.0.1:%d {
       max_concurrent 1000
    }
    %s
    loop
    reload
    loadbalance
}
`, portCoreDNS, api, s.pods, namespaces, portForward, cache), 0o600); err != nil {
		return nil, err
	}
	return &server{name: "coredns", port: portCoreDNS, args: []string{bin, "-conf", corefile}}, nil
}

// knotServer serves the cluster's names as a zone file. Knot has a thread of each kind, as it has one core.
func knotServer(c *cluster, dir string) (*server, error) {
	var zone strings.Builder
	zone.WriteString("$ORIGIN cluster.local.\n$TTL 5\n@ SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ NS ns.dns\nns.dns A 127.0.0.1\n")
	byService := make(map[string]*discoveryv1.EndpointSlice)
	for _, es := range c.slices {
		byService[es.Namespace+"/"+es.Labels[discoveryv1.LabelServiceName]] = es
	}
	for _, s := range c.services {
		owner := s.Name + "." + s.Namespace + ".svc"
		if s.Spec.ClusterIP == "None" {
			es := byService[s.Namespace+"/"+s.Name]
			for _, e := range es.Endpoints {
				host := strings.ReplaceAll(e.Addresses[0], ".", "-") + "." + owner
				fmt.Fprintf(&zone, "%s A %s\n%s A %s\n_http._tcp.%s SRV 0 100 8080 %s\n", owner, e.Addresses[0], host, e.Addresses[0], owner, host)
			}
			continue
		}
		for _, ip := range s.Spec.ClusterIPs {
			typ := "A"
			if strings.Contains(ip, ":") {
				typ = "AAAA"
			}
			fmt.Fprintf(&zone, "%s %s %s\n", owner, typ, ip)
		}
		fmt.Fprintf(&zone, "_http._tcp.%s SRV 0 100 80 %s\n", owner, owner)
	}
	return knot("knot", portKnot, "cluster.local", zone.String(), dir)
}

// outsideServer serves the names that weft and CoreDNS forward.
func outsideServer(names int, dir string) (*server, error) {
	var zone strings.Builder
	zone.WriteString("$ORIGIN example.\n$TTL 3600\n@ SOA ns hostmaster 1 7200 1800 86400 3600\n@ NS ns\nns A 127.0.0.1\n")
	for i := range names {
		fmt.Fprintf(&zone, "host-%d A 192.0.2.%d\nhost-%d AAAA 2001:db8::%x\n", i, i%250+1, i, i)
	}
	return knot("outside", portForward, "example", zone.String(), dir)
}

func knot(name string, port int, domain, zone, dir string) (*server, error) {
	dir = filepath.Join(dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "zone"), []byte(zone), 0o644); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "knot.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, `server:
    rundir: %[1]s
    listen: 127.0.0.1@%[2]d
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: warning
database:
    storage: %[1]s
zone:
  - domain: %[3]s
    storage: %[1]s
    file: zone
    zonefile-sync: -1
    journal-content: none
`, dir, port, domain), 0o644); err != nil {
		return nil, err
	}
	return &server{name: name, port: port, args: []string{"knotd", "-c", conf}}, nil
}
