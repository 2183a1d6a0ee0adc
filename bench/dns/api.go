// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
)

// cluster is the objects that both servers see, and their watchers.
type cluster struct {
	namespaces []*corev1.Namespace
	services   []*corev1.Service
	slices     []*discoveryv1.EndpointSlice
	pods       []*corev1.Pod

	mu       sync.Mutex
	version  int
	watchers map[chan []byte]string // by resource
}

// newCluster makes n Services in n/100 namespaces: every tenth headless, every fifth of two families; with 2.5
// endpoints each.
func newCluster(n int) *cluster {
	c := &cluster{version: 1000, watchers: make(map[chan []byte]string)}
	for i := range max(n/100, 1) {
		c.namespaces = append(c.namespaces, &corev1.Namespace{ObjectMeta: meta("", fmt.Sprintf("team-%d", i), i)})
	}
	pod, vip := uint32(10<<24|1<<20), uint32(172<<24|16<<16)
	v4 := func(a *uint32) string {
		*a++
		return net.IPv4(byte(*a>>24), byte(*a>>16), byte(*a>>8), byte(*a)).String()
	}
	ready, proto, http, port := true, corev1.ProtocolTCP, "http", int32(8080)
	for i := range n {
		ns := c.namespaces[i%len(c.namespaces)].Name
		name := fmt.Sprintf("service-%d", i)
		s := &corev1.Service{ObjectMeta: meta(ns, name, i), Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, Selector: map[string]string{"app": name}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Name: http, Protocol: proto, Port: 80}},
		}}
		s.Labels = map[string]string{"app": name, "team": ns}
		if i%10 == 9 {
			s.Spec.ClusterIP = corev1.ClusterIPNone
			s.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
		} else {
			s.Spec.ClusterIP = v4(&vip)
			s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
			if i%5 == 0 {
				s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, fmt.Sprintf("fd00:10:96::%x:%x", i>>16, i&0xffff))
			}
		}
		c.services = append(c.services, s)
		es := &discoveryv1.EndpointSlice{ObjectMeta: meta(ns, name+"-x7k2p", i), AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []discoveryv1.EndpointPort{{Name: &http, Protocol: &proto, Port: &port}}}
		es.Labels = map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io"}
		for j := range 2 + i%2 {
			node, zone := fmt.Sprintf("node-%d", (i+j)%500), fmt.Sprintf("zone-%d", (i+j)%3)
			es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{v4(&pod)}, NodeName: &node, Zone: &zone,
				Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready},
				TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: fmt.Sprintf("%s-5d8f7-%d", name, j)},
			})
		}
		c.slices = append(c.slices, es)
	}
	return c
}

func meta(ns, name string, i int) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: ns, Name: name, ResourceVersion: "1000", UID: types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", i))}
}

// serve answers lists and watches on a loopback port until the process ends, and returns its URL.
func (c *cluster) serve() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go func() { _ = http.Serve(l, c) }()
	return "http://" + l.Addr().String(), nil
}

// ServeHTTP answers as an API server does, as far as informers ask.
func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	q := r.URL.Query()
	switch {
	case q.Get("sendInitialEvents") != "":
		// As servers without streaming lists do.
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
			Status: metav1.StatusFailure, Reason: metav1.StatusReasonInvalid, Code: http.StatusUnprocessableEntity})
	case q.Get("watch") != "":
		c.watch(w, r, resource)
	default:
		c.list(w, r, resource)
	}
}

func (c *cluster) list(w http.ResponseWriter, r *http.Request, resource string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lm := metav1.ListMeta{ResourceVersion: fmt.Sprint(c.version)}
	var list runtime.Object
	gv := corev1.SchemeGroupVersion
	switch resource {
	case "namespaces":
		l := &corev1.NamespaceList{ListMeta: lm}
		for _, o := range c.namespaces {
			l.Items = append(l.Items, *o)
		}
		list = l
	case "pods":
		l := &corev1.PodList{ListMeta: lm}
		for _, o := range c.pods {
			l.Items = append(l.Items, *o)
		}
		list = l
	case "services":
		l := &corev1.ServiceList{ListMeta: lm}
		for _, o := range c.services {
			l.Items = append(l.Items, *o)
		}
		list = l
	case "endpointslices":
		l := &discoveryv1.EndpointSliceList{ListMeta: lm}
		for _, o := range c.slices {
			l.Items = append(l.Items, *o)
		}
		list, gv = l, discoveryv1.SchemeGroupVersion
	default:
		http.NotFound(w, r)
		return
	}
	if strings.Contains(r.Header.Get("Accept"), "protobuf") {
		w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf")
		s := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
		_ = scheme.Codecs.EncoderForVersion(s, gv).Encode(list, w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(encode(list, gv))
}

func encode(o runtime.Object, gv schema.GroupVersion) []byte {
	b, err := runtime.Encode(scheme.Codecs.LegacyCodec(gv), o)
	if err != nil {
		panic(err)
	}
	return b
}

func (c *cluster) watch(w http.ResponseWriter, r *http.Request, resource string) {
	ch := make(chan []byte, 1024)
	c.mu.Lock()
	c.watchers[ch] = resource
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.watchers, ch)
		c.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json;stream=watch")
	w.WriteHeader(http.StatusOK)
	flush := w.(http.Flusher)
	flush.Flush()
	for {
		select {
		case e := <-ch:
			if _, err := w.Write(e); err != nil {
				return
			}
			flush.Flush()
		case <-r.Context().Done():
			return
		}
	}
}

// watching tells how many watches of a resource there are.
func (c *cluster) watching(resource string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.watchers {
		if r == resource {
			n++
		}
	}
	return n
}

// change gives a Service another ClusterIP and tells the watchers.
func (c *cluster) change(i int, ip string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.services[i].DeepCopy()
	s.Spec.ClusterIP, s.Spec.ClusterIPs = ip, []string{ip}
	c.services[i] = s
	c.tell("services", "MODIFIED", s, corev1.SchemeGroupVersion)
}

// tell gives an object the next version and sends the event to the watchers. c.mu is held.
func (c *cluster) tell(resource, event string, o runtime.Object, gv schema.GroupVersion) {
	c.version++
	o.(metav1.Object).SetResourceVersion(fmt.Sprint(c.version))
	text := fmt.Appendf(nil, `{"type":%q,"object":%s}`+"\n", event, encode(o, gv))
	for ch, r := range c.watchers {
		if r == resource {
			ch <- text
		}
	}
}
