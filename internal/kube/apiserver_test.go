// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// apiServer serves Services as a real API server does, streamed lists and bookmarks included, over real HTTP.
type apiServer struct {
	*httptest.Server

	mu       sync.Mutex
	rv       int
	services map[string]*corev1.Service
	watches  map[chan metav1.WatchEvent]bool
	opened   int  // watches begun so far
	listed   int  // lists answered so far
	mute     bool // open watches say nothing
}

func newAPIServer(t *testing.T) *apiServer {
	s := &apiServer{rv: 1, services: map[string]*corev1.Service{}, watches: map[chan metav1.WatchEvent]bool{}}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() { s.cut(); s.Close() })
	return s
}

func (s *apiServer) config() *rest.Config { return &rest.Config{Host: s.URL, QPS: -1} }

// apply stores a Service and tells the watches; nil deletes it.
func (s *apiServer) apply(name string, svc *corev1.Service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rv++
	kind := "ADDED"
	if old := s.services[name]; old != nil {
		kind = "MODIFIED"
		if svc == nil {
			kind, svc = "DELETED", old.DeepCopy()
		}
	}
	svc.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}
	svc.Namespace, svc.Name, svc.ResourceVersion = "shop", name, strconv.Itoa(s.rv)
	if kind == "DELETED" {
		delete(s.services, name)
	} else {
		s.services[name] = svc
	}
	s.tell(event(kind, svc))
}

func event(kind string, o any) metav1.WatchEvent {
	raw, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	e := metav1.WatchEvent{Type: kind}
	e.Object.Raw = raw
	return e
}

func (s *apiServer) tell(e metav1.WatchEvent) {
	if s.mute {
		return
	}
	for ch := range s.watches {
		ch <- e
	}
}

// cut ends every open watch, as a restart does.
func (s *apiServer) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ch := range s.watches {
		close(ch)
		delete(s.watches, ch)
	}
}

func (s *apiServer) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *apiServer) serve(w http.ResponseWriter, r *http.Request) {
	if !strings.HasSuffix(r.URL.Path, "/api/v1/services") {
		http.NotFound(w, r)
		return
	}
	q := r.URL.Query()
	w.Header().Set("Content-Type", "application/json")
	s.mu.Lock()
	if q.Get("watch") == "" {
		list := corev1.ServiceList{ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.rv)}}
		list.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceList"}
		for _, svc := range s.services {
			list.Items = append(list.Items, *svc)
		}
		s.listed++
		s.mu.Unlock()
		_ = json.NewEncoder(w).Encode(list)
		return
	}
	since, _ := strconv.Atoi(q.Get("resourceVersion"))
	ch := make(chan metav1.WatchEvent, 1000)
	for _, svc := range s.services {
		if rv, _ := strconv.Atoi(svc.ResourceVersion); q.Get("sendInitialEvents") == "true" || rv > since {
			ch <- event("ADDED", svc)
		}
	}
	if q.Get("sendInitialEvents") == "true" {
		mark := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}}
		mark.ResourceVersion = strconv.Itoa(s.rv)
		mark.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
		ch <- event("BOOKMARK", mark)
	}
	s.watches[ch] = true
	s.opened++
	s.mu.Unlock()
	w.(http.Flusher).Flush()
	enc := json.NewEncoder(w)
	for {
		select {
		case e, ok := <-ch:
			if !ok {
				return
			}
			if enc.Encode(e) != nil {
				return
			}
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			s.set(func() { delete(s.watches, ch) })
			return
		}
	}
}
