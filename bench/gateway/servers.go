// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// routes is how many routes each contender has.
const routes = 1000

// Ports of the endpoints.
const (
	portHTTP = 18080 // nginx: small and large bodies
	portGRPC = 18091 // ours: HTTP/2 with prior knowledge
	portWS   = 18092 // ours: WebSocket
	portTCP  = 18093 // ours: echo
	portUp   = 18094 // ours: takes bodies
)

// portSet is where a contender listens.
type portSet struct{ plain, secure, tcp, pass int }

func ports(name string) portSet {
	base := map[string]int{"nginx": 18100, "haproxy": 18200, "weft": 18300, control: 18400}[name]
	return portSet{base, base + 1, base + 2, base + 3}
}

// bench is what runs.
type bench struct {
	dir      string
	weft     string
	commands map[string][]string
	procs    map[string]*process
}

func (b *bench) file(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) start(ctx context.Context) error {
	if b.weft == "" {
		b.weft = b.file("weft")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.weft, "../../cmd/weft")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build weft: %w\n%s", err, out)
		}
	}
	chain, key, err := certificate()
	if err != nil {
		return err
	}
	tables, err := json.Marshal(weftTables(routes, chain, key))
	if err != nil {
		return err
	}
	var list strings.Builder
	for i := range routes {
		fmt.Fprintf(&list, "/route-%d/ e\n", i)
	}
	for name, text := range map[string]string{
		"crt": chain, "key": key, "pem": chain + key, "64k": strings.Repeat("x", 64<<10), "weft.yaml": string(tables), "map": list.String(),
		"endpoint.conf": b.nginxEndpoint(), "nginx.conf": b.nginx("nginx"), control + ".conf": b.nginx(control), "haproxy.conf": b.haproxy(),
		"post.lua": "wrk.method = \"POST\"\nwrk.body = string.rep(\"x\", 65536)\n",
		// An empty gRPC message: not compressed, no bytes.
		"message": "\x00\x00\x00\x00\x00",
	} {
		if err := os.WriteFile(b.file(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for name, args := range map[string][]string{
		"endpoint":  {"1", "nginx", "-c", b.file("endpoint.conf")},
		"endpoint2": {"1", self, "endpoint"},
		"nginx":     {"0", "nginx", "-c", b.file("nginx.conf")},
		control:     {"0", "nginx", "-c", b.file(control + ".conf")},
		"haproxy":   {"0", "haproxy", "-db", "-f", b.file("haproxy.conf")},
		"weft":      {"0", b.weft, "gateway", "--config", b.file("weft.yaml"), "--metrics-bind-address", ""},
	} {
		b.commands[name] = args
		if err := b.begin(name); err != nil {
			return err
		}
	}
	for _, port := range []int{portHTTP, portGRPC, portWS, portTCP, portUp} {
		if err := b.listening(ctx, port); err != nil {
			return err
		}
	}
	for _, name := range append([]string{control}, contenders...) {
		if err := b.ready(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// ready waits until a contender listens.
func (b *bench) ready(ctx context.Context, name string) error {
	p := ports(name)
	for _, port := range []int{p.plain, p.secure, p.tcp, p.pass} {
		if err := b.listening(ctx, port); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// again starts a contender anew.
func (b *bench) again(ctx context.Context, name string) error {
	b.stopOne(name)
	if err := b.begin(name); err != nil {
		return err
	}
	return b.ready(ctx, name)
}

func (b *bench) listening(ctx context.Context, port int) error {
	end := time.Now().Add(20 * time.Second)
	for ctx.Err() == nil && time.Now().Before(end) {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err == nil {
			return c.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
	logs, _ := filepath.Glob(b.file("*.log"))
	var all []byte
	for _, l := range append(logs, b.file("err")) {
		text, _ := os.ReadFile(l)
		all = append(all, text...)
	}
	return fmt.Errorf("nothing listens on %d:\n%s", port, all)
}

func (b *bench) stop() {
	for name := range b.procs {
		b.stopOne(name)
	}
}

func (b *bench) stopOne(name string) {
	p := b.procs[name]
	delete(b.procs, name)
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(5*time.Second, func() { _ = p.cmd.Process.Kill() })
	_ = p.cmd.Wait() // how it ended is of no interest
	late.Stop()
}

// process is one server.
type process struct{ cmd *exec.Cmd }

// begin starts a server; the first of its words is the core that it gets.
func (b *bench) begin(name string) error {
	log, err := os.Create(b.file(name + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("taskset", append([]string{"-c"}, b.commands[name]...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	b.procs[name] = &process{cmd}
	return nil
}

// pids are the process and its children.
func (p *process) pids() []string {
	pid := strconv.Itoa(p.cmd.Process.Pid)
	children, _ := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
	return append(strings.Fields(string(children)), pid)
}

// cpu is how many nanoseconds all threads and children have had a core.
func (p *process) cpu() (total int64, err error) {
	for _, pid := range p.pids() {
		stats, _ := filepath.Glob("/proc/" + pid + "/task/*/schedstat")
		for _, s := range stats {
			text, err := os.ReadFile(s)
			if err != nil {
				continue // a thread that has just ended
			}
			ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
			if err != nil {
				return 0, err
			}
			total += ns
		}
	}
	return total, nil
}

// rss is resident memory in bytes.
func (p *process) rss() (total int64) {
	for _, pid := range p.pids() {
		text, _ := os.ReadFile("/proc/" + pid + "/status")
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
				kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				total += kb << 10
			}
		}
	}
	return total
}

func certificate() (chain, key string, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &k.PublicKey, k)
	if err != nil {
		return "", "", err
	}
	kb, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return "", "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb})), nil
}

// nginxCommon is what both of nginx's configurations have.
func (b *bench) nginxCommon(name string) (main, http string) {
	var modules, temp string
	if m := "/usr/lib/nginx/modules/ngx_stream_module.so"; exists(m) {
		modules = "load_module " + m + ";\n"
	}
	for _, p := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temp += fmt.Sprintf("%s_temp_path %s/t-%s-%s;\n", p, b.dir, name, p)
	}
	main = modules + fmt.Sprintf("daemon off; worker_processes 1; error_log %s/err; pid %s/%s.pid;\nevents { worker_connections 16384; }\n", b.dir, b.dir, name)
	return main, "access_log off; keepalive_requests 1000000000; client_max_body_size 0; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:s:10m;\n" + temp
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func (b *bench) nginxEndpoint() string {
	main, http := b.nginxCommon("e")
	return main + fmt.Sprintf(`http { %s
server { listen 127.0.0.1:%d backlog=8192; root %s;
location / { return 200 "a small body, as those of most APIs are\n"; } location /64k { try_files /64k =404; sendfile on; } } }
`, http, portHTTP, b.dir)
}

func (b *bench) nginx(name string) string {
	main, http := b.nginxCommon(name)
	p := ports(name)
	var list strings.Builder
	for i := range routes {
		fmt.Fprintf(&list, "location /route-%d/ { proxy_pass http://e; }\n", i)
	}
	return main + fmt.Sprintf(`http { %s
upstream e { server 127.0.0.1:%d; keepalive 256; keepalive_requests 1000000000; }
upstream u { server 127.0.0.1:%d; keepalive 256; keepalive_requests 1000000000; }
upstream g { server 127.0.0.1:%d; keepalive 256; keepalive_requests 1000000000; }
proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_request_buffering off;
proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $host;
proxy_set_header X-Forwarded-Port $server_port; proxy_set_header X-Request-Id $request_id;
server { listen 127.0.0.1:%d backlog=8192; listen 127.0.0.1:%d ssl http2 backlog=8192; ssl_certificate %s/crt; ssl_certificate_key %s/key;
location / { proxy_pass http://e; }
location /grpc/ { grpc_pass grpc://g; grpc_set_header X-Request-Id $request_id; }
location /up { proxy_pass http://u; }
location /ws { proxy_pass http://127.0.0.1:%d; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }
%s } }
stream { server { listen 127.0.0.1:%d; proxy_pass 127.0.0.1:%d; } server { listen 127.0.0.1:%d; ssl_preread on; proxy_pass 127.0.0.1:%d; } }
`, http, portHTTP, portUp, portGRPC, p.plain, p.secure, b.dir, b.dir, portWS, list.String(), p.tcp, portTCP, p.pass, portTCP)
}

func (b *bench) haproxy() string {
	p := ports("haproxy")
	return fmt.Sprintf(`global
  nbthread 1
  maxconn 16384
  no strict-limits
defaults
  mode http
  timeout client 75s
  timeout server 300s
  timeout connect 5s
  http-reuse always
frontend f
  bind 127.0.0.1:%d
  bind 127.0.0.1:%d ssl crt %s/pem alpn h2,http/1.1
  http-request set-header X-Forwarded-For %%[src]
  http-request set-header X-Forwarded-Proto %%[ssl_fc,iif(https,http)]
  http-request set-header X-Forwarded-Host %%[req.hdr(host)]
  http-request set-header X-Forwarded-Port %%[dst_port]
  http-request set-header X-Request-Id %%[uuid]
  use_backend g if { path_beg /grpc/ }
  use_backend w if { path_beg /ws }
  use_backend u if { path_beg /up }
  use_backend %%[path,map_beg(%s/map,e)]
backend e
  server e 127.0.0.1:%d
backend g
  server g 127.0.0.1:%d proto h2
backend u
  server u 127.0.0.1:%d
backend w
  server w 127.0.0.1:%d
listen t
  mode tcp
  bind 127.0.0.1:%d
  server t 127.0.0.1:%d
frontend p
  mode tcp
  bind 127.0.0.1:%d
  tcp-request inspect-delay 5s
  tcp-request content accept if { req.ssl_hello_type 1 }
  use_backend p if { req.ssl_sni -m found }
backend p
  mode tcp
  server p 127.0.0.1:%d
`, p.plain, p.secure, b.dir, b.dir, portHTTP, portGRPC, portUp, portWS, p.tcp, portTCP, p.pass, portTCP)
}

// weftTables is weft's configuration with n routes beside that for everything else.
func weftTables(n int, chain, key string) *route.Update {
	p := ports("weft")
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	web := []route.Parent{{Listener: "http", Hostnames: []string{""}}, {Listener: "https", Hostnames: []string{""}}}
	to := func(backend string) []route.WeightedBackend {
		return []route.WeightedBackend{{Backend: backend, Weight: 1}}
	}
	prefix := func(path string) []route.Match {
		return []route.Match{{Path: &route.PathMatch{Kind: route.PathPrefix, Value: path}}}
	}
	u := &route.Update{
		Revision: 1,
		Listeners: []route.Listener{
			{Key: "http", Protocol: route.HTTP, Port: uint16(p.plain), Addresses: loopback},
			{Key: "https", Protocol: route.HTTPS, Port: uint16(p.secure), Addresses: loopback, TLS: &route.ListenerTLS{Certificates: []string{"c"}}},
			{Key: "tcp", Protocol: route.TCP, Port: uint16(p.tcp), Addresses: loopback},
			{Key: "pass", Protocol: route.TLS, Port: uint16(p.pass), Addresses: loopback, TLS: &route.ListenerTLS{Passthrough: true}},
		},
		Certificates: []route.Certificate{{Key: "c", Chain: chain, PrivateKey: key}},
		Routes: []route.Route{
			{Key: "all", Kind: route.HTTPRoute, Parents: web, Rules: []route.Rule{
				{Backends: to("e")}, {Matches: prefix("/grpc"), Backends: to("g")}, {Matches: prefix("/ws"), Backends: to("w")}, {Matches: prefix("/up"), Backends: to("u")}}},
			{Key: "tcp", Kind: route.TCPRoute, Parents: []route.Parent{{Listener: "tcp", Hostnames: []string{""}}}, Rules: []route.Rule{{Backends: to("t")}}},
			{Key: "pass", Kind: route.TLSRoute, Parents: []route.Parent{{Listener: "pass", Hostnames: []string{""}}}, Rules: []route.Rule{{Backends: to("p")}}},
		},
	}
	for _, b := range []struct {
		key      string
		protocol route.BackendProtocol
		port     int
	}{{"e", route.HTTP1, portHTTP}, {"g", route.HTTP2, portGRPC}, {"w", route.HTTP1, portWS}, {"u", route.HTTP1, portUp}, {"t", route.Raw, portTCP}, {"p", route.Raw, portTCP}} {
		u.Backends = append(u.Backends, route.Backend{Key: b.key, Endpoints: b.key, Protocol: b.protocol})
		u.Endpoints = append(u.Endpoints, route.EndpointSet{Key: b.key, Endpoints: []route.Endpoint{{Address: "127.0.0.1:" + strconv.Itoa(b.port)}}})
	}
	for i := range n {
		u.Routes = append(u.Routes, route.Route{Key: fmt.Sprintf("HTTPRoute/bench/route-%d", i), Kind: route.HTTPRoute, Parents: web,
			Rules: []route.Rule{{Matches: prefix(fmt.Sprintf("/route-%d", i)), Backends: to("e")}}})
	}
	return u
}
