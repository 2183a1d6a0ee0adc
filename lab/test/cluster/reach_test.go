// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/weft-net/weft/lab/labtest"
)

var listening = regexp.MustCompile(`127\.0\.0\.1:\d+`)

// forward runs `weft lab forward` beside the test and gives the address on this machine.
func forward(t *testing.T, args ...string) string {
	t.Helper()
	bin, err := labtest.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "weft-lab"), append([]string{"--name", lab.Name, "forward"}, args...)...)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); cmd.Wait() })
	line, err := bufio.NewReader(said).ReadString('\n')
	addr := listening.FindString(line)
	if err != nil || addr == "" {
		t.Fatalf("forward %v said %q, %v", args, line, err)
	}
	return addr
}

func TestForward(t *testing.T) {
	ns := lab.Namespace(t)
	lab.Apply(t, ns, echo)
	lab.Rollout(t, ns, "ds/echo")
	service := lab.Get(t, ns, "svc/echo", "{.spec.clusterIP}")
	pods := strings.Fields(lab.Get(t, ns, "pods", "{.items[*].status.podIP}"))
	v6 := strings.Fields(lab.Get(t, ns, "pods", "{.items[*].status.podIPs[1].ip}"))

	for _, target := range []string{service + ":80", pods[0] + ":8080", "[" + v6[1] + "]:8080", "203.0.113.1:80"} {
		resp, err := http.Get("http://" + forward(t, target) + "/healthz")
		if err != nil {
			t.Errorf("forward %s: %v", target, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("forward %s: %s", target, resp.Status)
		}
	}

	conn, err := net.Dial("udp", forward(t, pods[2]+":9000", "--udp"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	labtest.Eventually(t, 30*time.Second, func() error { // a datagram may be lost
		if _, err := conn.Write([]byte("hello")); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		_, err := conn.Read(make([]byte, 2048))
		return err
	})

	if _, err := lab.Run(t.Context(), "forward", "nonsense"); err == nil || !strings.Contains(err.Error(), "ADDRESS:PORT") {
		t.Errorf("forward nonsense: %v", err)
	}
}

// TestRegistry pulls from a registry on this machine's loopback, where only the lab's proxy can reach.
func TestRegistry(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference("127.0.0.1:" + port + "/pulled:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, echoImage(t)); err != nil {
		t.Fatal(err)
	}
	ns := lab.Namespace(t)
	lab.Kubectl(t, "run", "-n", ns, "pulled", "--image=host.localhost:"+port+"/pulled:v1")
	lab.WaitFor(t, ns, "condition=Ready", "pod/pulled")
}

// echoImage is an image of one layer that holds the echo server.
func echoImage(t *testing.T) v1.Image {
	t.Helper()
	bin, err := labtest.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(filepath.Join(bin, "echo"))
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "echo", Mode: 0o755, Size: int64(len(program))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(program); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.Config(img, v1.Config{Entrypoint: []string{"/echo"}})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestLogs(t *testing.T) {
	for _, args := range [][]string{{"apiserver"}, {"etcd"}, {"scheduler"}, {"controller-manager"}, {"kubelet", "--node", "node1"}, {"cri", "--node", "node2"}} {
		out, err := lab.Run(t.Context(), append([]string{"logs"}, args...)...)
		if err != nil || out == "" && args[0] != "etcd" { // etcd is silent unless something is wrong
			t.Errorf("logs %v: %d bytes, %v", args, len(out), err)
		}
	}
	if _, err := lab.Run(t.Context(), "logs", "nothing"); err == nil || !strings.Contains(err.Error(), "unknown component") {
		t.Errorf("logs of nothing: %v", err)
	}
	tr := lab.Background(t, "logs", "kubelet", "--node", "node1", "--follow")
	ns := lab.Namespace(t)
	lab.Apply(t, ns, echo)
	lab.Rollout(t, ns, "ds/echo")
	if out, _ := tr.Stop(); !strings.Contains(out, ns) {
		t.Errorf("kubelet's log doesn't tell of namespace %s", ns)
	}
}
