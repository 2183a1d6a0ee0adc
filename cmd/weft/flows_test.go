// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/flowlog"
)

func agentPod(node string) corev1.Pod {
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "weft-" + node},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "weft"}}},
	}
}

// TestFlowsOfSomeAgents: what the others say is shown in order of time, and that it is not all.
func TestFlowsOfSomeAgents(t *testing.T) {
	pods := []corev1.Pod{agentPod("n1"), agentPod("n2"), agentPod("n3")}
	at := map[string]time.Time{"n1": time.Unix(20, 0), "n3": time.Unix(10, 0)}
	ask := func(follow bool, pods ...corev1.Pod) (string, string, error) {
		var out, errOut strings.Builder
		f := flowFlags{follow: follow}
		err := f.ask(t.Context(), pods, &flowPrinter{out: &out, err: &errOut, format: "json"}, func(pod *corev1.Pod, each func(*flowlog.Event) error) error {
			when, up := at[pod.Spec.NodeName]
			if !up {
				return errors.New("it is gone")
			}
			return each(&flowlog.Event{Time: when, Node: pod.Spec.NodeName})
		})
		return out.String(), errOut.String(), err
	}
	for _, follow := range []bool{false, true} {
		out, errOut, err := ask(follow, pods...)
		n1, n3 := strings.Index(out, `"node":"n1"`), strings.Index(out, `"node":"n3"`)
		if n1 < 0 || n3 < 0 || !follow && n1 < n3 {
			t.Errorf("--follow=%v:\n%s", follow, out)
		}
		if errOut != "weft: node n2: it is gone\n" || err == nil || err.Error() != "these are not all flows: no answer from n2" || exitStatus(err) != exitTrouble {
			t.Errorf("--follow=%v: %q, %v", follow, errOut, err)
		}
	}
	if _, _, err := ask(false, pods[0], pods[2]); err != nil {
		t.Error(err)
	}
	if _, _, err := ask(false, pods[1]); err == nil || err.Error() != "no agent answered" {
		t.Error(err)
	}
}

// TestAgentOutOfReach: an API server that waits for a node that is gone is not waited for.
func TestAgentOutOfReach(t *testing.T) {
	gone := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-gone:
		case <-r.Context().Done():
		}
	}))
	defer s.Close()
	defer close(gone)
	pod := agentPod("n1")
	begin := time.Now()
	err := execAgent(t.Context(), &rest.Config{Host: s.URL}, &pod, 50*time.Millisecond, []string{"weft"}, func(io.Reader) error { return errors.New("it was run") })
	if err == nil || err.Error() != "pod kube-system/weft-n1 can't be reached within 50ms: is the node up, and its kubelet?" {
		t.Error(err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}
