// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
)

// agents selects the pods of weft's node agents, as the Helm chart labels them.
const agents = "app.kubernetes.io/name=weft,app.kubernetes.io/component=node"

// agentPods are the agents that run, of all nodes or of one.
func agentPods(ctx context.Context, cfg *rest.Config, node string) ([]corev1.Pod, error) {
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	list, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{LabelSelector: agents})
	if err != nil {
		return nil, fmt.Errorf("find weft's agents: %w", err)
	}
	pods := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool {
		return p.Status.Phase != corev1.PodRunning || node != "" && p.Spec.NodeName != node
	})
	if len(pods) == 0 && node != "" {
		return nil, fmt.Errorf("no running pod with labels %s on node %s: is weft installed there?", agents, node)
	}
	if len(pods) == 0 {
		return nil, fmt.Errorf("no running pod with labels %s: is weft installed in this cluster?", agents)
	}
	return pods, nil
}

// agentPatience is how long an agent may take to be reached. Where its node is gone, the API server waits for a minute.
const agentPatience = 5 * time.Second

// execAgent runs a command in an agent's container and has read read its output to the end. An agent that isn't reached
// within the patience is an error; the command may take what time it takes.
func execAgent(ctx context.Context, cfg *rest.Config, pod *corev1.Pod, patience time.Duration, args []string, read func(io.Reader) error) error {
	if err := reachAgent(ctx, cfg, pod, patience); err != nil {
		return err
	}
	exec, err := agentExecutor(ctx, cfg, pod, args)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := exec.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: w, Stderr: os.Stderr})
		w.CloseWithError(err)
		done <- err
	}()
	if err := read(r); err != nil {
		r.CloseWithError(err)
		return err
	}
	return <-done
}

// reachAgent runs what ends at once, for a stream says nothing of whether its far end is there: the API server accepts it
// before it asks the node.
func reachAgent(ctx context.Context, cfg *rest.Config, pod *corev1.Pod, patience time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	exec, err := agentExecutor(ctx, cfg, pod, []string{"weft", "--version"})
	if err != nil {
		return err
	}
	done := make(chan error, 1) // the library does not heed ctx while SPDY is negotiated
	go func() {
		done <- exec.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(patience):
		return fmt.Errorf("pod %s/%s can't be reached within %s: is the node up, and its kubelet?", pod.Namespace, pod.Name, patience)
	}
}

// agentExecutor runs a command in an agent's container: over WebSocket or, as kubectl does, over SPDY where something on
// the way takes no WebSocket.
func agentExecutor(ctx context.Context, cfg *rest.Config, pod *corev1.Pod, args []string) (remotecommand.Executor, error) {
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	url := client.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: pod.Spec.Containers[0].Name, Command: args, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	spdy, err := remotecommand.NewSPDYExecutor(cfg, http.MethodPost, url)
	if err != nil {
		return nil, err
	}
	ws, err := remotecommand.NewWebSocketExecutor(cfg, http.MethodGet, url.String())
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(ws, spdy, func(err error) bool {
		return ctx.Err() == nil && (httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err))
	})
}
