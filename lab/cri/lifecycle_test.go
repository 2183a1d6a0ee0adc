// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPodRuns(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("web"))
	id := n.run(pod, ctr(probeImage, "hello"))
	if st := n.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || st.StartedAt == 0 {
		t.Errorf("status %v", st)
	}
	n.eventually("both streams are logged", func() bool { return len(n.logs(id)) == 2 })
	lines := n.logs(id)
	slices.Sort(lines)
	want := []string{"stderr F to stderr", `stdout F pid 1 uid 0 gid 0 args ["hello"]`}
	if !slices.Equal(lines, want) {
		t.Errorf("log %q, want %q", lines, want)
	}
	r, err := n.PodSandboxStatus(n.ctx(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	if r.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || r.Status.Network.Ip != "10.9.8.7" ||
		r.Status.Network.AdditionalIps[0].Ip != "fd09::7" {
		t.Errorf("sandbox %v", r.Status)
	}
}
