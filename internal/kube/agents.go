// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// agentSelector finds the pods of `weft node`, as the Helm chart labels them.
const agentSelector = "app.kubernetes.io/name=weft,app.kubernetes.io/component=node"

// agentTimeout bounds how long one agent may take to answer.
const agentTimeout = 3 * time.Second

// AgentMetrics asks the node agents, through the API server's proxy to their pods, for their /metrics, in Prometheus'
// text format, by node. The error joins what went wrong with each that did not answer; it needs the right to list
// pods and to get pods/proxy.
func AgentMetrics(ctx context.Context, cfg *rest.Config) (map[string]string, error) {
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	pods, err := c.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: agentSelector})
	if err != nil {
		return nil, fmt.Errorf("list the node agents' pods: %w", err)
	}
	out := make(map[string]string)
	var bad []error
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, 32)
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil {
			continue
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, agentTimeout)
			defer cancel()
			text, err := c.CoreV1().Pods(p.Namespace).ProxyGet("http", p.Name, metricsPort(p), "metrics", nil).DoRaw(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				bad = append(bad, fmt.Errorf("ask the agent of node %s: %w", p.Spec.NodeName, err))
				return
			}
			out[p.Spec.NodeName] = string(text)
		})
	}
	wg.Wait()
	return out, errors.Join(bad...)
}

// metricsPort is the number of the pod's port of that name; "" is the first.
func metricsPort(p *corev1.Pod) string {
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if port.Name == "metrics" {
				return fmt.Sprint(port.ContainerPort)
			}
		}
	}
	return ""
}
