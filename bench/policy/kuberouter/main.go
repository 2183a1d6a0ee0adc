// SPDX-License-Identifier: Apache-2.0

// Kuberouter runs kube-router's network policy controller, as it is released, in the network namespace that it is
// started in: the peer of `make bench-policy`. It is a module of its own, so that what it needs is no part of weft's
// builds: security flaws are known of its newest release that is a Go module. It imports nothing of this project.
//
// Standard input is a stream of JSON values: the first holds all objects, each later one what changed. For each, one
// line on standard output says how many nanoseconds it took from kube-router's own event handler, or from its start,
// until the kernel had it: until iptables-restore was done, without the search for old sets that comes after.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"github.com/cloudnativelabs/kube-router/v2/pkg/utils"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// objects are all of a cluster's, or those that changed.
type objects struct {
	Namespaces      []*corev1.Namespace           `json:"namespaces,omitempty"`
	Pods            []*corev1.Pod                 `json:"pods,omitempty"`
	NetworkPolicies []*networkingv1.NetworkPolicy `json:"networkPolicies,omitempty"`
}

func main() {
	log.SetFlags(0)
	node := flag.String("node", "", "name and address of the node, as NAME=ADDRESS")
	namespace := flag.String("netns", "", "what /proc/self/ns/net must link to: this program writes to its kernel tables")
	flag.Parse()
	if err := run(*node, *namespace, os.Stdin, os.Stdout); err != nil {
		log.Fatal("kuberouter: ", err)
	}
}

func run(node, namespace string, in io.Reader, out io.Writer) error {
	if at, err := os.Readlink("/proc/self/ns/net"); err != nil {
		return err
	} else if at != namespace {
		return fmt.Errorf("in network namespace %s, not in %q that -netns names", at, namespace)
	}
	d := json.NewDecoder(in)
	var all objects
	if err := d.Decode(&all); err != nil {
		return fmt.Errorf("read the objects: %w", err)
	}
	r, err := start(node, all)
	if err != nil {
		return err
	}
	for {
		fmt.Fprintln(out, r.wait().Nanoseconds())
		var changed objects
		if err := d.Decode(&changed); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read what changed: %w", err)
		}
		r.expect()
		for _, o := range changed.Namespaces {
			r.namespaces.Modify(o)
		}
		for _, o := range changed.Pods {
			r.pods.Modify(o)
		}
		for _, o := range changed.NetworkPolicies {
			r.policies.Modify(o)
		}
	}
}

// router is the controller at work.
type router struct {
	namespaces, pods, policies *watch.RaceFreeFakeWatcher

	mu      sync.Mutex
	event   time.Time // when what is waited for came to the controller; zero: not yet
	started time.Time // when the round began that is under way
	took    chan time.Duration
}

func start(nodeFlag string, all objects) (*router, error) {
	r := &router{namespaces: watch.NewRaceFreeFake(), pods: watch.NewRaceFreeFake(), policies: watch.NewRaceFreeFake(), took: make(chan time.Duration, 1)}
	config := options.NewKubeRouterConfig()
	config.EnableIPv4 = true
	node, err := parseNode(nodeFlag)
	if err != nil {
		return nil, err
	}
	config.HostnameOverride = node.Name
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://api", Transport: nodeAPI{node}})
	if err != nil {
		return nil, err
	}
	tables, sets, err := netpol.NewIPTablesHandlers(config)
	if err != nil {
		return nil, err
	}
	for family, s := range sets {
		sets[family] = observedSets{s, r.restored}
	}
	pods := informer(&corev1.Pod{}, r.pods, &corev1.PodList{Items: values(all.Pods)})
	policies := informer(&networkingv1.NetworkPolicy{}, r.policies, &networkingv1.NetworkPolicyList{Items: values(all.NetworkPolicies)})
	namespaces := informer(&corev1.Namespace{}, r.namespaces, &corev1.NamespaceList{Items: values(all.Namespaces)})
	controller, err := netpol.NewNetworkPolicyController(client, config, pods, policies, namespaces, &sync.Mutex{}, tables, sets)
	if err != nil {
		return nil, err
	}
	stop := make(chan struct{})
	for i, h := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		pods: controller.PodEventHandler, policies: controller.NetworkPolicyEventHandler, namespaces: controller.NamespaceEventHandler,
	} {
		if _, err := i.AddEventHandler(r.observed(h)); err != nil {
			return nil, err
		}
		go i.Run(stop)
	}
	if !cache.WaitForCacheSync(stop, pods.HasSynced, policies.HasSynced, namespaces.HasSynced) {
		return nil, errors.New("the objects were not taken in")
	}
	r.reached()
	beats := make(chan *healthcheck.ControllerHeartbeat)
	go func() {
		for b := range beats {
			r.began(b.LastHeartBeat)
		}
	}()
	var running sync.WaitGroup
	running.Add(1)
	go controller.Run(beats, stop, &running)
	return r, nil
}

// observed is the handler, after the time of a change was taken. Additions come before the controller runs.
func (r *router) observed(h cache.ResourceEventHandler) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { h.OnAdd(o, true) },
		UpdateFunc: func(old, o any) { r.reached(); h.OnUpdate(old, o) },
		DeleteFunc: h.OnDelete,
	}
}

func (r *router) expect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.event = time.Time{}
}

func (r *router) reached() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.event = time.Now()
}

// began notes a round: kube-router sends a sign of life at the start of each.
func (r *router) began(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.started = at
}

// restored is called when a round has changed the kernel. Only one that began after the event counts: what an earlier
// one has read may be of before.
func (r *router) restored() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.event.IsZero() && r.started.After(r.event) {
		r.took <- time.Since(r.event)
		r.event = time.Time{}
	}
}

func (r *router) wait() time.Duration { return <-r.took }

// observedSets tells when a round is done with the kernel's tables: it reads the sets then, to find old ones, and only
// then.
type observedSets struct {
	utils.IPSetHandler
	restored func()
}

func (s observedSets) Save() error {
	s.restored()
	return s.IPSetHandler.Save()
}

// informer lists what is given and watches what comes.
func informer(kind runtime.Object, w watch.Interface, list runtime.Object) cache.SharedIndexInformer {
	return cache.NewSharedIndexInformer(&cache.ListWatch{
		ListFunc:  func(metav1.ListOptions) (runtime.Object, error) { return list, nil },
		WatchFunc: func(metav1.ListOptions) (watch.Interface, error) { return w, nil },
	}, kind, 0, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
}

func values[T any](all []*T) []T {
	out := make([]T, len(all))
	for i, v := range all {
		out[i] = *v
	}
	return out
}

// nodeAPI is an API server that knows one node.
type nodeAPI struct{ node *corev1.Node }

func parseNode(s string) (*corev1.Node, error) {
	name, address, ok := strings.Cut(s, "=")
	if !ok {
		return nil, fmt.Errorf("-node %q: want NAME=ADDRESS", s)
	}
	n := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}}
	n.Name = name
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
	return n, nil
}

func (a nodeAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	status, body := http.StatusNotFound, []byte("{}")
	if r.URL.Path == "/api/v1/nodes/"+a.node.Name {
		var err error
		if body, err = json.Marshal(a.node); err != nil {
			return nil, err
		}
		status = http.StatusOK
	}
	return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
}
