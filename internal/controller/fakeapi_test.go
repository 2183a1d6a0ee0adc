// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/rest"
)

// object is an API object as JSON.
type object = map[string]any

// fakeAPI is as much of an API server as the controller needs: get, list, watch, create, update and patch with
// resource versions, status subresources, uids, finalizers and deletion. It can be told to be away.
type fakeAPI struct {
	t      *testing.T
	server *httptest.Server

	mu      sync.Mutex
	rv      int
	objects map[string]object // by path: /api/v1/namespaces/default/services/a
	history []event
	changed chan struct{} // closed and made anew at every event
	away    bool
	slow    time.Duration // that requests for Leases take
	leases  [2]int        // requests for Leases that came, and those that wrote one
	noLists bool          // lists fail
	behind  string        // the resource whose watches show nothing new; "" is none
	lists   int           // lists of Services answered
	refuse  string        // writes to paths that begin so are forbidden; "" is none
	busy    string        // and to these answered 503
	writes  []string      // "PATCH /api/v1/…" of Services and pools that changed something
}

type event struct {
	rv     int
	prefix string
	kind   string
	obj    object
}

func newFakeAPI(t *testing.T) *fakeAPI {
	f := &fakeAPI{t: t, objects: map[string]object{}, changed: make(chan struct{})}
	f.server = httptest.NewServer(f)
	t.Cleanup(func() {
		f.server.CloseClientConnections()
		f.server.Close()
	})
	return f
}

func (f *fakeAPI) config() *rest.Config {
	return &rest.Config{Host: f.server.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json", AcceptContentTypes: "application/json"}}
}

// setAway makes every request fail and cuts the watches, or ends that.
func (f *fakeAPI) setAway(away bool) {
	f.mu.Lock()
	f.away = away
	f.bump()
	f.mu.Unlock()
	if away {
		f.server.CloseClientConnections()
	}
}

// setSlow has requests for Leases take that long, and tells how many have come and how many have written one.
func (f *fakeAPI) setSlow(d time.Duration) (came, written int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.slow = d
	return f.leases[0], f.leases[1]
}

// setNoLists has lists fail from now on; watches that are open go on.
func (f *fakeAPI) setNoLists() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.noLists = true
}

// setBehind has watches of a resource show nothing new from now on; "" ends that.
func (f *fakeAPI) setBehind(resource string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.behind = resource
	f.bump()
}

// setRefuse has writes to paths that begin so forbidden; "" ends that.
func (f *fakeAPI) setRefuse(prefix string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = prefix
}

// setBusy has writes to paths that begin so answered 503; "" ends that.
func (f *fakeAPI) setBusy(prefix string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy = prefix
}

func (f *fakeAPI) bump() {
	close(f.changed)
	f.changed = make(chan struct{})
}

func metaOf(o object) object {
	m, _ := o["metadata"].(object)
	if m == nil {
		m = object{}
		o["metadata"] = m
	}
	return m
}

// store keeps the object under its path and tells the watches. The caller holds the lock.
func (f *fakeAPI) store(path string, o object) {
	f.rv++
	kind := "MODIFIED"
	m := metaOf(o)
	if f.objects[path] == nil {
		kind = "ADDED"
		if m["uid"] == nil {
			m["uid"] = fmt.Sprint("uid-", f.rv)
		}
		if m["creationTimestamp"] == nil {
			m["creationTimestamp"] = time.Unix(int64(f.rv), 0).UTC().Format(time.RFC3339)
		}
	}
	m["resourceVersion"] = fmt.Sprint(f.rv)
	f.objects[path] = o
	f.history = append(f.history, event{f.rv, path, kind, clone(o)})
	f.bump()
}

func (f *fakeAPI) remove(path string) {
	o := f.objects[path]
	delete(f.objects, path)
	f.rv++
	f.history = append(f.history, event{f.rv, path, "DELETED", clone(o)})
	f.bump()
}

func clone(o object) object {
	data, _ := json.Marshal(o)
	var out object
	_ = json.Unmarshal(data, &out)
	return out
}

// put creates or replaces an object, as a user does.
func (f *fakeAPI) put(path, text string) {
	f.t.Helper()
	var o object
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		f.t.Fatalf("%s: %v", text, err)
	}
	collection, name := path[:strings.LastIndex(path, "/")], path[strings.LastIndex(path, "/")+1:]
	o["apiVersion"], o["kind"] = version(path), kinds[collection[strings.LastIndex(collection, "/")+1:]]
	metaOf(o)["name"] = name
	if _, rest, ok := strings.Cut(path, "/namespaces/"); ok && strings.Contains(rest, "/") {
		metaOf(o)["namespace"], _, _ = strings.Cut(rest, "/")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.objects[path]; old != nil {
		for _, k := range []string{"uid", "creationTimestamp", "finalizers"} {
			if v := metaOf(old)[k]; v != nil && metaOf(o)[k] == nil {
				metaOf(o)[k] = v
			}
		}
		if o["status"] == nil && old["status"] != nil {
			o["status"] = old["status"]
		}
	}
	f.store(path, o)
}

// delete does what a user's delete does: at once, or when the last finalizer goes.
func (f *fakeAPI) delete(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fin, _ := metaOf(f.objects[path])["finalizers"].([]any); len(fin) > 0 {
		o := clone(f.objects[path])
		metaOf(o)["deletionTimestamp"] = "2026-01-01T00:00:00Z"
		f.store(path, o)
		return
	}
	f.remove(path)
}

// get is a copy of the object; nil if there is none.
func (f *fakeAPI) get(path string) object {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.objects[path] == nil {
		return nil
	}
	return clone(f.objects[path])
}

func (f *fakeAPI) written() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.writes)
}

// kinds by resource.
var kinds = map[string]string{"services": "Service", "nodes": "Node", "namespaces": "Namespace", "addresspools": "AddressPool",
	"leases": "Lease", "events": "Event", "ingresses": "Ingress", "ingressclasses": "IngressClass", "secrets": "Secret", "configmaps": "ConfigMap", "endpointslices": "EndpointSlice",
	"deployments": "Deployment", "serviceaccounts": "ServiceAccount", "poddisruptionbudgets": "PodDisruptionBudget",
	"gatewayclasses": "GatewayClass", "gateways": "Gateway", "httproutes": "HTTPRoute", "gatewayconfigs": "GatewayConfig", "trafficpolicies": "TrafficPolicy"}

func fail(w http.ResponseWriter, code int, reason metav1.StatusReason, msg string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status: "Failure", Code: int32(code), Reason: reason, Message: msg})
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.Contains(r.URL.Path, "/leases/") {
		f.mu.Lock()
		slow := f.slow
		f.leases[0]++
		f.mu.Unlock()
		body, _ := io.ReadAll(r.Body) // or nobody hears of a client that leaves
		r.Body = io.NopCloser(bytes.NewReader(body))
		select {
		case <-time.After(slow):
		case <-r.Context().Done():
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		fail(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, "away")
		return
	}
	path := r.URL.Path
	w.Header().Set("Content-Type", "application/json")
	resource := path[strings.LastIndex(path, "/")+1:]
	switch {
	case r.Method == http.MethodGet && kinds[resource] != "" && r.URL.Query().Get("watch") != "":
		if r.URL.Query().Get("sendInitialEvents") == "true" {
			fail(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "no streaming lists here")
			return
		}
		f.watch(w, r, resource)
	case r.Method == http.MethodGet && kinds[resource] != "" && f.noLists:
		fail(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, "no lists")
	case r.Method == http.MethodGet && kinds[resource] != "":
		if resource == "services" {
			f.lists++
		}
		items := []object{}
		for _, p := range slices.Sorted(maps.Keys(f.objects)) {
			if within(p, path, resource) {
				items = append(items, f.objects[p])
			}
		}
		_ = json.NewEncoder(w).Encode(object{"kind": kinds[resource] + "List", "apiVersion": version(path),
			"metadata": object{"resourceVersion": fmt.Sprint(f.rv)}, "items": items})
	case r.Method == http.MethodGet:
		if f.objects[path] == nil {
			fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, path)
			return
		}
		_ = json.NewEncoder(w).Encode(f.objects[path])
	default:
		f.change(w, r, path)
	}
}

func version(path string) string {
	if parts := strings.Split(path, "/"); parts[1] == "apis" {
		return parts[2] + "/" + parts[3]
	}
	return "v1"
}

// within tells whether the object is in the collection, which may be that of all namespaces.
func within(object, collection, resource string) bool {
	base := strings.TrimSuffix(collection, "/"+resource)
	i := strings.LastIndex(object, "/")
	return strings.HasPrefix(object, base+"/") && strings.HasSuffix(object[:i], "/"+resource)
}

func (f *fakeAPI) watch(w http.ResponseWriter, r *http.Request, resource string) {
	var since int
	_, _ = fmt.Sscan(r.URL.Query().Get("resourceVersion"), &since)
	enc := json.NewEncoder(w)
	for {
		if f.behind != resource {
			for _, e := range f.history[sort.Search(len(f.history), func(i int) bool { return f.history[i].rv > since }):] {
				if within(e.prefix, r.URL.Path, resource) {
					_ = enc.Encode(object{"type": e.kind, "object": e.obj})
				}
			}
			since = f.rv
		}
		w.(http.Flusher).Flush()
		f.await(r)
		if f.away || r.Context().Err() != nil {
			return
		}
	}
}

// await waits, without the lock, until something has changed or the request is over.
func (f *fakeAPI) await(r *http.Request) {
	changed := f.changed
	f.mu.Unlock()
	defer f.mu.Lock()
	select {
	case <-changed:
	case <-r.Context().Done():
	}
}

// change serves create, update and patch.
func (f *fakeAPI) change(w http.ResponseWriter, r *http.Request, path string) {
	body, _ := io.ReadAll(r.Body)
	target, sub := path, ""
	if s, ok := strings.CutSuffix(path, "/status"); ok {
		target, sub = s, "status"
	}
	if f.refuse != "" && strings.HasPrefix(path, f.refuse) {
		fail(w, http.StatusForbidden, metav1.StatusReasonForbidden, "exceeded quota: tight")
		return
	}
	if f.busy != "" && strings.HasPrefix(path, f.busy) {
		fail(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, "etcd is busy")
		return
	}
	var in object
	if err := json.Unmarshal(body, &in); err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	if r.Method == http.MethodPost {
		name, _ := metaOf(in)["name"].(string)
		target = path + "/" + name
		if f.objects[target] != nil {
			fail(w, http.StatusConflict, metav1.StatusReasonAlreadyExists, target)
			return
		}
		f.store(target, in)
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(in)
		return
	}
	old := f.objects[target]
	if old == nil && r.Header.Get("Content-Type") == string(types.ApplyPatchType) {
		f.store(target, in)
		f.writes = append(f.writes, "APPLY "+path)
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(in)
		return
	}
	if r.Method == http.MethodDelete && old != nil {
		f.remove(target)
		_ = json.NewEncoder(w).Encode(old)
		return
	}
	if old == nil {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, target)
		return
	}
	next := in
	if r.Method == http.MethodPatch {
		if uid := metaOf(in)["uid"]; uid != nil && uid != metaOf(old)["uid"] {
			fail(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "metadata.uid: immutable")
			return
		}
		if rv := metaOf(in)["resourceVersion"]; rv != nil && rv != metaOf(old)["resourceVersion"] {
			fail(w, http.StatusConflict, metav1.StatusReasonConflict, "resourceVersion")
			return
		}
		original, _ := json.Marshal(old)
		patch := func(a, b []byte) ([]byte, error) { return strategicpatch.StrategicMergePatch(a, b, corev1.Service{}) }
		if r.Header.Get("Content-Type") != string(types.StrategicMergePatchType) {
			patch = jsonpatch.MergePatch // near enough to server-side apply, too
		}
		merged, err := patch(original, body)
		if err != nil {
			fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
			return
		}
		next = nil
		_ = json.Unmarshal(merged, &next)
	} else if rv := metaOf(in)["resourceVersion"]; rv != nil && rv != metaOf(old)["resourceVersion"] {
		fail(w, http.StatusConflict, metav1.StatusReasonConflict, "resourceVersion")
		return
	}
	merged := clone(old)
	if sub == "status" {
		merged["status"] = next["status"]
	} else {
		status := old["status"]
		merged = clone(next)
		if merged["status"] = status; status == nil || strings.HasSuffix(path, "/leases/weft-controller") {
			merged["status"] = next["status"]
		}
	}
	if strings.Contains(path, "/leases/") {
		f.leases[1]++
	}
	before, _ := json.Marshal(old)
	after, _ := json.Marshal(merged)
	if string(before) != string(after) {
		if !strings.Contains(path, "/leases/") {
			f.writes = append(f.writes, r.Method+" "+path)
		}
		fin, _ := metaOf(merged)["finalizers"].([]any)
		if metaOf(merged)["deletionTimestamp"] != nil && len(fin) == 0 {
			f.remove(target)
		} else {
			f.store(target, merged)
		}
	}
	_ = json.NewEncoder(w).Encode(merged)
}
