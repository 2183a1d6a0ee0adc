// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weft-net/weft/lab/labtest"
)

// standing is how many routes are there: $WEFT_ROUTES, or as many as a busy machine's API server takes in seconds. With
// $WEFT_ROUTES it is also so many more new routes that are timed: $WEFT_ROUTES is for measuring, less for a test.
var standing, measuring = func() (int, bool) {
	if n, err := strconv.Atoi(os.Getenv("WEFT_ROUTES")); err == nil && n > 0 {
		return n, true
	}
	return 300, false
}()

// A mode is what happens beside the new routes that are timed.
type mode struct {
	name  string
	timed int           // how many new routes, as a test
	full  int           // and to measure
	every time.Duration // how long after one of them the next one comes, at least
	what  string
}

// churners is how many clients of the mode "churn" change one route after the other.
const churners = 4

var modes = []mode{
	{"idle", 100, 300, 0, "nothing else changes"},
	// What gateway-api-bench's second test of propagation has running beside it (its tests/route-load.sh).
	{"bench", 20, 100, 250 * time.Millisecond, "a route of another Service changes each second, and a pod of its is replaced each two"},
	{"churn", 100, 300, 0, "four clients change routes as fast as they can, with 20 ms in between"},
}

// probeEnv has the test's binary be the client beyond the cluster: "namespace address".
const probeEnv = "WEFT_PROPAGATION_PROBE"

// TestPropagation measures how long after the API server has accepted a route its first request is answered, with many
// other routes there, idle and while others change, and what the controllers do when nothing changes. What is asserted is
// that no request fails, every route is live in the end, and an idle controller is idle; the figures are logged.
func TestPropagation(t *testing.T) {
	gatewayAPI(t)
	ns := lab.Namespace(t)
	lab.Apply(t, ns, echo("one", 2)+echo("two", 2)+httpGateway)
	lab.Rollout(t, ns, "deploy/one")
	lab.Rollout(t, ns, "deploy/two")
	addr := programmed(t, ns, "web")[0]
	lab.Rollout(t, ns, "deploy/web-weft")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := lab.Exec(t.Context(), "outside", "env", probeEnv+"="+ns+" "+addr, "WEFT_ROUTES="+os.Getenv("WEFT_ROUTES"), self, "-test.run=^TestProbe$", "-test.v")
	if err != nil {
		t.Fatal(err)
	}
	_, line, ok := strings.Cut(out, "RESULT ")
	var result map[string]measured
	if !ok || json.Unmarshal([]byte(strings.SplitN(line, "\n", 2)[0]), &result) != nil {
		t.Fatalf("no result in %s", out)
	}
	for _, mode := range modes {
		name, m := mode.name, result[mode.name]
		t.Logf("%s (%s), %d routes there: of %d new ones live after p50 %v, p99 %v, longest %v; a watch of the test's own had them after p50 %v, p99 %v, longest %v, and the first answer was behind that by p50 %v, p99 %v, longest %v; %d other requests, %d failed; %d other changes",
			name, mode.what, standing, m.New, m.Live.P50, m.Live.P99, m.Live.Max, m.Seen.P50, m.Seen.P99, m.Seen.Max, m.Behind.P50, m.Behind.P99, m.Behind.Max, m.Others, m.Failed, m.Changes)
		if m.Failed > 0 {
			t.Errorf("%s: %d requests of other routes failed: %s", name, m.Failed, m.Failure)
		}
		if m.Live.P99 > 30*time.Second { // on the busiest of machines
			t.Errorf("%s: a route takes %v", name, m.Live.P99)
		}
	}
	controllersIdle(t)
}

// controllersIdle looks how much of a core the controllers take while nothing changes.
func controllersIdle(t *testing.T) {
	_, missing := exec.LookPath("curl")
	labtest.Require(t, missing)
	const over = 10 * time.Second
	pods := strings.Fields(lab.Kubectl(t, "get", "pods", "-n", "kube-system", "-l", "app.kubernetes.io/component=controller",
		"-o", "jsonpath={range .items[*]}{.spec.nodeName}/{.status.podIP} {end}"))
	if len(pods) == 0 {
		t.Fatal("no controllers")
	}
	used := func() (all []float64) {
		for _, pod := range pods {
			node, ip, _ := strings.Cut(pod, "/")
			out, err := lab.Exec(t.Context(), node, "curl", "-sS", "http://"+net.JoinHostPort(ip, "9641")+"/metrics")
			_, line, ok := strings.Cut(out, "\nprocess_cpu_seconds_total ")
			line, _, _ = strings.Cut(line, "\n")
			seconds, wrong := strconv.ParseFloat(line, 64)
			if err != nil || !ok || wrong != nil {
				t.Fatalf("metrics of the controller on %s: %v, %v\n%s", node, err, wrong, out)
			}
			all = append(all, seconds)
		}
		return all
	}
	// What the routes before brought about ends first; then it is the least of some looks, which nothing disturbed.
	least := make([]float64, len(pods))
	labtest.Eventually(t, 3*time.Minute, func() error {
		before, at := used(), time.Now()
		time.Sleep(over)
		after, took := used(), time.Since(at).Seconds()
		for i := range pods {
			least[i] = 100 * (after[i] - before[i]) / took
			if least[i] > 5 {
				return fmt.Errorf("the controller on %s takes %.1f %% of a core though nothing changes", pods[i], least[i])
			}
		}
		return nil
	})
	t.Logf("controllers while nothing changes: %.1f %% of a core", least)
}

type measured struct {
	Live           quantiles // until the first request is answered
	Seen           quantiles // until a watch of the test's own has it: the API server's part, and a busy machine's
	Behind         quantiles // by how much the former is more
	Others, Failed int64
	Failure        string
	New            int   // new routes that were timed
	Changes        int64 // of other things, meanwhile
}

type quantiles struct{ P50, P99, Max time.Duration }

func quantilesOf(took []time.Duration) quantiles {
	slices.Sort(took)
	return quantiles{took[len(took)/2], took[len(took)*99/100], took[len(took)-1]}
}

var routesResource = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "httproutes"}

func route(name, host, service string, generation int) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
		"metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"parentRefs": []any{map[string]any{"name": "web"}},
			"hostnames":  []any{host},
			"rules": []any{map[string]any{
				"matches":     []any{map[string]any{"path": map[string]any{"type": "PathPrefix", "value": "/"}}, map[string]any{"path": map[string]any{"type": "Exact", "value": fmt.Sprint("/g", generation)}}},
				"backendRefs": []any{map[string]any{"name": service, "port": int64(80)}},
			}},
		},
	}}
}

// serviceOf is the Service of a standing route: every tenth has another than those that are asked all the time.
func serviceOf(i int) string {
	if i%10 == 9 {
		return "two"
	}
	return "one"
}

// change gives a standing route another rule.
func change(ctx context.Context, routes dynamic.ResourceInterface, i, generation int) error {
	patch, err := json.Marshal(map[string]any{"spec": route("", fmt.Sprintf("h%d.example.com", i), serviceOf(i), generation).Object["spec"]})
	if err != nil {
		return err
	}
	_, err = routes.Patch(ctx, fmt.Sprint("standing-", i), types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// TestProbe is the client of TestPropagation; by itself it does nothing.
func TestProbe(t *testing.T) {
	ns, addr, ok := strings.Cut(os.Getenv(probeEnv), " ")
	if !ok {
		return
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS = -1
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	routes := client.Resource(routesResource).Namespace(ns)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < standing; i += 16 {
				if _, err := routes.Create(t.Context(), route(fmt.Sprint("standing-", i), fmt.Sprintf("h%d.example.com", i), serviceOf(i), 0), metav1.CreateOptions{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	get := func(host string) (int, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url(addr, "/"), nil)
		if err != nil {
			return 0, err
		}
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	for i := range standing {
		labtest.Eventually(t, 2*time.Minute, func() error {
			if code, err := get(fmt.Sprintf("h%d.example.com", i)); code != http.StatusOK {
				return fmt.Errorf("standing route %d: %d, %v", i, code, err)
			}
			return nil
		})
	}
	labtest.Eventually(t, 5*time.Minute, func() error { // until then the API server is busy with them
		list, err := routes.List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for i := range list.Items {
			if parents, _, _ := unstructured.NestedSlice(list.Items[i].Object, "status", "parents"); len(parents) == 0 {
				time.Sleep(time.Second)
				return fmt.Errorf("%s has no status", list.Items[i].GetName())
			}
		}
		return nil
	})
	measure := func(m mode) measured {
		name, n := m.name, m.timed
		if measuring {
			n = m.full
		}
		out := measured{New: n}
		ctx, stop := context.WithCancel(t.Context())
		var others, failed atomic.Int64
		var failure atomic.Value
		var beside sync.WaitGroup
		beside.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				at := i * 7 % standing
				if serviceOf(at) != "one" {
					continue
				}
				code, err := get(fmt.Sprintf("h%d.example.com", at))
				others.Add(1)
				if code != http.StatusOK {
					failed.Add(1)
					failure.Store(fmt.Sprintf("%d, %v", code, err))
				}
				time.Sleep(time.Millisecond)
			}
		})
		now, err := routes.List(ctx, metav1.ListOptions{Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		watcher, err := routes.Watch(ctx, metav1.ListOptions{ResourceVersion: now.GetResourceVersion()})
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		added := map[string]time.Time{}
		beside.Go(func() {
			for e := range watcher.ResultChan() {
				if o, ok := e.Object.(*unstructured.Unstructured); ok && e.Type == watch.Added {
					mu.Lock()
					added[o.GetName()] = time.Now()
					mu.Unlock()
				}
			}
		})
		var live, seen, behind []time.Duration
		next := time.Now()
		for i := range n {
			time.Sleep(time.Until(next))
			next = time.Now().Add(m.every)
			host := fmt.Sprintf("%s%d.example.org", name, i)
			if _, err := routes.Create(t.Context(), route(fmt.Sprint(name, "-", i), host, "one", 0), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			for ; ; time.Sleep(time.Millisecond / 2) {
				code, err := get(host)
				if code == http.StatusOK {
					break
				}
				if code != http.StatusNotFound || time.Since(began) > time.Minute {
					t.Fatalf("%s: %d, %v after %v", host, code, err, time.Since(began))
				}
			}
			took := time.Since(began)
			live = append(live, took)
			labtest.Eventually(t, time.Minute, func() error {
				mu.Lock()
				defer mu.Unlock()
				at, ok := added[fmt.Sprint(name, "-", i)]
				if !ok {
					return fmt.Errorf("no watch event of route %d", i)
				}
				seen = append(seen, max(0, at.Sub(began)))
				return nil
			})
			behind = append(behind, max(0, took-seen[i]))
		}
		stop()
		watcher.Stop()
		beside.Wait()
		out.Live, out.Seen, out.Behind = quantilesOf(live), quantilesOf(seen), quantilesOf(behind)
		out.Others, out.Failed = others.Load(), failed.Load()
		out.Failure, _ = failure.Load().(string)
		return out
	}
	pods := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "pods"}).Namespace(ns)
	result := map[string]measured{}
	for _, m := range modes {
		ctx, stop := context.WithCancel(t.Context())
		var changes atomic.Int64
		beside := func(pause func() time.Duration, do func(i int) error) {
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					if err := do(i); err != nil && ctx.Err() == nil {
						t.Error(err)
						return
					}
					changes.Add(1)
					select {
					case <-time.After(pause()):
					case <-ctx.Done():
					}
				}
			})
		}
		switch m.name {
		case "bench":
			jitter := func(mean time.Duration) func() time.Duration {
				return func() time.Duration {
					return max(0, mean+time.Duration(rand.NormFloat64()*float64(mean)/4))
				}
			}
			beside(jitter(time.Second), func(i int) error { return change(ctx, routes, (10*i+9)%standing, i+1) })
			beside(jitter(2*time.Second), func(i int) error {
				list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: "app=two"})
				if err != nil || len(list.Items) == 0 {
					return err
				}
				err = pods.Delete(ctx, list.Items[i%len(list.Items)].GetName(), metav1.DeleteOptions{GracePeriodSeconds: new(int64(1))})
				if apierrors.IsNotFound(err) { // it was on its way already
					return nil
				}
				return err
			})
		case "churn":
			for w := range churners {
				beside(func() time.Duration { return 20 * time.Millisecond }, func(i int) error {
					return change(ctx, routes, ((i+1)*churners+w)%standing, i+1)
				})
			}
		}
		r := measure(m)
		stop()
		wg.Wait()
		r.Changes = changes.Load()
		result[m.name] = r
	}
	raw, err := json.Marshal(result)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("RESULT %s\n", raw)
}
