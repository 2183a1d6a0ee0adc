// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
)

// agentMemory is what the whole agent takes, all its parts and its client of the API server included, with so many
// Services in the cluster.
type agentMemory struct {
	Services  int     `json:"services"`
	Endpoints int     `json:"endpointsEach"`
	Own       float64 `json:"ownMiB"`      // once it has come to rest: what no other process has
	Resident  float64 `json:"residentMiB"` // the same with the program's text
	Peak      float64 `json:"peakMiB"`     // the most ever, while it took the cluster in
	Ready     seconds `json:"ready"`       // from its start until all is in force
	Error     string  `json:"error,omitempty"`
}

// measureAgent runs "weft node", the program itself, against a server that speaks as the API server does, streamed
// lists and protobuf included. Server and agent have the process's network namespace to themselves.
func measureAgent(weft string, services, endpoints int) agentMemory {
	out := agentMemory{Services: services, Endpoints: endpoints}
	if err := out.measure(weft); err != nil {
		out.Error = err.Error()
	}
	return out
}

// restTime is how long the agent is left alone before its memory counts: what it needed for the first picture goes
// back to the system meanwhile.
const restTime = 20 * time.Second

func (m *agentMemory) measure(weft string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	api := &apiServer{objects: generate(m.Services, m.Endpoints)}
	go func() { _ = http.Serve(l, api) }()
	dir, err := os.MkdirTemp("", "weft-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	config := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'http://%s'}}]\n"+
		"contexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n", l.Addr())
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(at("kubeconfig"), []byte(config), 0o600); err != nil {
		return err
	}
	const listen = "127.0.0.1:19640"
	cmd := exec.Command(weft, "node", "--kubeconfig", at("kubeconfig"), "--node-name", nodeName, "--metrics-bind-address", listen,
		"--cni-socket", at("cni.sock"), "--state-dir", at("state"), "--cni-conf-dir", at("conf"), "--cni-bin-dir", at("bin"),
		"--announce-state", at("announced.json"))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	for !inForce(listen) {
		if time.Since(start) > patience {
			return fmt.Errorf("weft node was not ready after %s:\n%s", patience, said.Bytes())
		}
		time.Sleep(20 * time.Millisecond)
	}
	m.Ready = seconds(time.Since(start).Seconds())
	time.Sleep(restTime)
	pid := cmd.Process.Pid
	m.Own, m.Resident, m.Peak = memoryOf(pid, "RssAnon"), memoryOf(pid, "VmRSS"), memoryOf(pid, "VmHWM")
	return nil
}

// inForce tells whether the agent says that it is ready.
func inForce(listen string) bool {
	r, err := http.Get("http://" + listen + "/readyz")
	if err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, r.Body)
	return r.Body.Close() == nil && r.StatusCode == http.StatusOK
}

// apiServer streams generated objects.
type apiServer struct{ objects objects }

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, ok := map[string]k8sruntime.Object{
		"/api/v1/services": &corev1.Service{}, "/apis/discovery.k8s.io/v1/endpointslices": &discoveryv1.EndpointSlice{},
		"/api/v1/pods": &corev1.Pod{}, "/api/v1/nodes": &corev1.Node{}, "/api/v1/namespaces": &corev1.Namespace{},
	}[r.URL.Path]
	if !ok {
		s.others(w, r)
		return
	}
	if r.URL.Query().Get("sendInitialEvents") != "true" {
		http.Error(w, "streamed lists only", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf;stream=watch")
	out := &eventWriter{w: w, object: protobuf.NewSerializer(scheme.Scheme, scheme.Scheme), event: protobuf.NewRawSerializer(scheme.Scheme, scheme.Scheme)}
	err := s.objects(func(svc *corev1.Service, slices []*discoveryv1.EndpointSlice) error {
		switch kind.(type) {
		case *corev1.Service:
			svc.ResourceVersion = "1"
			return out.send("ADDED", svc)
		case *discoveryv1.EndpointSlice:
			for _, sl := range slices {
				sl.TypeMeta = metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}
				sl.ResourceVersion = "1"
				if err := out.send("ADDED", sl); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if node, ok := kind.(*corev1.Node); ok && err == nil {
		node.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}
		node.Name, node.ResourceVersion, node.Spec.PodCIDRs = nodeName, "1", []string{"10.128.0.0/24"}
		err = out.send("ADDED", node)
	}
	if ns, ok := kind.(*corev1.Namespace); ok && err == nil {
		ns.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}
		ns.Name, ns.ResourceVersion, ns.UID = metav1.NamespaceSystem, "1", "0c0f0f0e-0000-4000-8000-000000000001"
		err = out.send("ADDED", ns)
	}
	if err == nil {
		err = out.end(kind)
	}
	if err == nil {
		<-r.Context().Done()
	}
}

// others answers for the kinds of which there are none: those of a custom resource are not installed.
func (s *apiServer) others(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	list := map[string]any{"apiVersion": "networking.k8s.io/v1", "kind": "List", "metadata": map[string]string{"resourceVersion": "1"}, "items": []any{}}
	switch r.URL.Path {
	case "/apis/networking.k8s.io/v1/networkpolicies":
		list["kind"] = "NetworkPolicyList"
	case "/apis/networking.k8s.io/v1/servicecidrs":
		list["kind"] = "ServiceCIDRList"
	default:
		http.NotFound(w, r)
		return
	}
	if q := r.URL.Query(); q.Get("sendInitialEvents") != "" {
		w.WriteHeader(http.StatusUnprocessableEntity) // as a server does that is older than streamed lists
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
			Reason: metav1.StatusReasonInvalid, Code: http.StatusUnprocessableEntity})
		return
	} else if q.Get("watch") != "" {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return
	}
	_ = json.NewEncoder(w).Encode(list)
}

// eventWriter writes watch events as protobuf.
type eventWriter struct {
	w             http.ResponseWriter
	object, event k8sruntime.Encoder
	buf           bytes.Buffer
}

func (e *eventWriter) send(kind string, o k8sruntime.Object) error {
	e.buf.Reset()
	if err := e.object.Encode(o, &e.buf); err != nil {
		return err
	}
	frame := protobuf.LengthDelimitedFramer.NewFrameWriter(e.w)
	return e.event.Encode(&metav1.WatchEvent{Type: kind, Object: k8sruntime.RawExtension{Raw: e.buf.Bytes()}}, frame)
}

// end says that the list is complete.
func (e *eventWriter) end(kind k8sruntime.Object) error {
	gvks, _, err := scheme.Scheme.ObjectKinds(kind)
	if err != nil {
		return err
	}
	kind = kind.DeepCopyObject()
	kind.GetObjectKind().SetGroupVersionKind(gvks[0])
	m := kind.(metav1.Object)
	m.SetName("")
	m.SetResourceVersion("1")
	m.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	if err := e.send("BOOKMARK", kind); err != nil {
		return err
	}
	e.w.(http.Flusher).Flush()
	return nil
}

// buildWeft builds the program, as it is built for users, into a folder.
func buildWeft(dir string) (string, error) {
	_, file, _, _ := runtime.Caller(0)
	if !filepath.IsAbs(file) { // built with -trimpath: this program runs in its folder
		file = "agent.go"
	}
	out := filepath.Join(dir, "weft")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", out, "./cmd/weft")
	cmd.Dir = filepath.Join(filepath.Dir(file), "..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build weft: %w\n%s", err, said)
	}
	return out, nil
}

// memoryOf reads one of a process's figures of memory, in MiB.
func memoryOf(pid int, field string) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(v), " kB"))
			if err != nil {
				panic(err)
			}
			return float64(kb) / 1024
		}
	}
	panic(fmt.Sprintf("no %s in %s", field, b))
}
