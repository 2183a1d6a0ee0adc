// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPodRuns(t *testing.T) {
	n := newNode(t)
	begin := time.Now()
	pod := n.runPod(n.pod("web"))
	id := n.run(pod, ctr(probeImage, "hello"))
	t.Logf("sandbox and container took %s", time.Since(begin))
	if st := n.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || st.StartedAt == 0 || st.Image.Image != probeImage {
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

func TestHowContainersEnd(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("ends"))
	for _, tc := range []struct {
		name   string
		config *runtimeapi.ContainerConfig
		code   int32
		reason string
	}{
		{"success", ctr(probeImage, "exit", "0"), 0, "Completed"},
		{"failure", ctr(probeImage, "exit", "3"), 3, "Error"},
		{"signal", shell("kill -SEGV $$; sh -c 'kill -SEGV $$'"), 139, "Error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			st := n.wait(n.run(pod, tc.config))
			if st.ExitCode != tc.code || st.Reason != tc.reason || st.FinishedAt < st.StartedAt || st.StartedAt < st.CreatedAt {
				t.Errorf("exit code %d, reason %q, created %d, started %d, finished %d; want code %d, reason %q",
					st.ExitCode, st.Reason, st.CreatedAt, st.StartedAt, st.FinishedAt, tc.code, tc.reason)
			}
		})
	}
}

func TestContainerThatCannotStart(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("broken"))
	config := ctr(probeImage)
	config.Command = []string{"/no/such/program"}
	id := n.create(pod, config)
	_, err := n.StartContainer(n.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("error %v", err)
	}
	if st := n.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason != "StartError" ||
		st.ExitCode != 128 || !strings.Contains(st.Message, "/no/such/program") {
		t.Errorf("status %v", st)
	}
	config.Command = []string{"nowhere"}
	id = n.create(pod, config)
	_, err = n.StartContainer(n.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), "$PATH") {
		t.Errorf("error %v", err)
	}
}

func TestStop(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("stops"))
	waiting := func(id string) {
		n.eventually("it waits", func() bool { return slices.Contains(n.logs(id), "stdout F waiting") })
	}
	t.Run("a program that listens to TERM", func(t *testing.T) {
		id := n.run(pod, ctr(probeImage, "stop"))
		waiting(id)
		if _, err := n.StopContainer(n.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 30}); err != nil {
			t.Fatal(err)
		}
		if st := n.status(id); st.ExitCode != 7 {
			t.Errorf("exit code %d, want 7", st.ExitCode)
		}
		if got := n.logs(id); !slices.Contains(got, "stdout F got TERM") {
			t.Errorf("log %q", got)
		}
	})
	t.Run("a program that doesn't is killed", func(t *testing.T) {
		id := n.run(pod, ctr(probeImage, "stubborn"))
		waiting(id)
		begin := time.Now()
		if _, err := n.StopContainer(n.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d < time.Second {
			t.Errorf("killed after %s, before the grace was over", d)
		}
		if st := n.status(id); st.ExitCode != 137 || st.Reason != "Error" {
			t.Errorf("status %v", st)
		}
	})
	t.Run("no grace", func(t *testing.T) {
		id := n.run(pod, ctr(probeImage, "stop"))
		if _, err := n.StopContainer(n.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		if st := n.status(id); st.ExitCode != 137 {
			t.Errorf("exit code %d, want 137", st.ExitCode)
		}
	})
	t.Run("stop signal of the pod", func(t *testing.T) {
		config := shell("trap 'exit 9' USR1; while :; do sleep 0.01; done")
		config.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR1
		id := n.run(pod, config)
		if st := n.status(id); st.StopSignal != runtimeapi.Signal_SIGNAL_SIGUSR1 {
			t.Errorf("stop signal %v", st.StopSignal)
		}
		n.eventually("the trap is set", func() bool {
			out, _ := n.execIn(id, "/bin/sh", "-c", "grep SigCgt /proc/1/status")
			return strings.TrimSpace(strings.TrimPrefix(out, "SigCgt:")) != "0000000000000000"
		})
		if _, err := n.StopContainer(n.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 30}); err != nil {
			t.Fatal(err)
		}
		if st := n.status(id); st.ExitCode != 9 {
			t.Errorf("exit code %d, want 9", st.ExitCode)
		}
	})
	t.Run("a pod", func(t *testing.T) {
		id := n.run(pod, ctr(probeImage, "stubborn"))
		for range 2 { // it may be repeated
			if _, err := n.StopPodSandbox(n.ctx(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
				t.Fatal(err)
			}
		}
		if st := n.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
			t.Errorf("container %v", st)
		}
		r, err := n.PodSandboxStatus(n.ctx(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
		if err != nil {
			t.Fatal(err)
		}
		if r.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || r.Status.Network.Ip != "" {
			t.Errorf("sandbox %v", r.Status)
		}
		if entries, _ := os.ReadDir(n.cfg.NetNSDir); len(entries) != 0 {
			t.Errorf("network namespaces left: %v", entries)
		}
		if entries, _ := os.ReadDir(n.cniDir); len(entries) != 0 {
			t.Errorf("still in the network: %v", entries)
		}
	})
}

func TestUnknownIDs(t *testing.T) {
	n := newNode(t)
	if _, err := n.StopContainer(n.ctx(), &runtimeapi.StopContainerRequest{ContainerId: "none"}); err != nil {
		t.Error("StopContainer:", err)
	}
	if _, err := n.RemoveContainer(n.ctx(), &runtimeapi.RemoveContainerRequest{ContainerId: "none"}); err != nil {
		t.Error("RemoveContainer:", err)
	}
	if _, err := n.StopPodSandbox(n.ctx(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: "none"}); err != nil {
		t.Error("StopPodSandbox:", err)
	}
	if _, err := n.RemovePodSandbox(n.ctx(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: "none"}); err != nil {
		t.Error("RemovePodSandbox:", err)
	}
	if _, err := n.ContainerStatus(n.ctx(), &runtimeapi.ContainerStatusRequest{ContainerId: "none"}); status.Code(err) != codes.NotFound {
		t.Error("ContainerStatus:", err)
	}
	if _, err := n.PodSandboxStatus(n.ctx(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "none"}); status.Code(err) != codes.NotFound {
		t.Error("PodSandboxStatus:", err)
	}
	if _, err := n.CheckpointContainer(n.ctx(), &runtimeapi.CheckpointContainerRequest{}); status.Code(err) != codes.Unimplemented {
		t.Error("CheckpointContainer:", err)
	}
}

func TestListsAndFilters(t *testing.T) {
	n := newNode(t)
	one, two := n.runPod(n.pod("one")), n.runPod(n.pod("two"))
	running := n.run(one, ctr(probeImage))
	ended := n.run(two, ctr(probeImage, "exit", "0"))
	created := n.create(two, ctr(probeImage))
	n.wait(ended)
	list := func(f *runtimeapi.ContainerFilter) []string {
		r, err := n.ListContainers(n.ctx(), &runtimeapi.ListContainersRequest{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, c := range r.Containers {
			ids = append(ids, c.Id)
		}
		return ids
	}
	state := func(s runtimeapi.ContainerState) *runtimeapi.ContainerFilter {
		return &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: s}}
	}
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		want   []string // newest first
	}{
		{"all", nil, []string{created, ended, running}},
		{"running", state(runtimeapi.ContainerState_CONTAINER_RUNNING), []string{running}},
		{"exited", state(runtimeapi.ContainerState_CONTAINER_EXITED), []string{ended}},
		{"created", state(runtimeapi.ContainerState_CONTAINER_CREATED), []string{created}},
		{"of a pod", &runtimeapi.ContainerFilter{PodSandboxId: two}, []string{created, ended}},
		{"by the first digits", &runtimeapi.ContainerFilter{Id: running[:13]}, []string{running}},
		{"by a label that none has", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"a": "b"}}, nil},
	} {
		if got := list(tc.filter); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
	if _, err := n.StopPodSandbox(n.ctx(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: two}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		filter *runtimeapi.PodSandboxFilter
		want   []string
	}{
		{nil, []string{two, one}},
		{&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "one"}}, []string{one}},
		{&runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}}, []string{two}},
	} {
		stream, err := n.StreamPodSandboxes(n.ctx(), &runtimeapi.StreamPodSandboxesRequest{Filter: tc.filter})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for {
			part, err := stream.Recv()
			if err != nil {
				break
			}
			for _, p := range part.PodSandboxes {
				got = append(got, p.Id)
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%v: %v, want %v", tc.filter, got, tc.want)
		}
	}
}

func TestLogs(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("logs"))
	t.Run("long lines come in parts", func(t *testing.T) {
		id := n.run(pod, ctr(probeImage, "long", "40000"))
		n.wait(id)
		var tags string
		var size int
		for _, line := range n.logs(id) {
			f := strings.SplitN(line, " ", 3)
			tags += f[1]
			size += len(f[2])
		}
		if tags != "PPF" || size != 40000 {
			t.Errorf("tags %s, %d bytes; want PPF and 40000", tags, size)
		}
	})
	t.Run("the last line needs no newline", func(t *testing.T) {
		id := n.run(pod, shell("printf 'a\\n\\nb'"))
		n.wait(id)
		if got, want := n.logs(id), []string{"stdout F a", "stdout F ", "stdout F b"}; !slices.Equal(got, want) {
			t.Errorf("log %q, want %q", got, want)
		}
	})
	t.Run("rotation loses nothing", func(t *testing.T) {
		id := n.run(pod, ctr(probeImage, "count"))
		file := n.status(id).LogPath
		var names []string
		for i := range 3 {
			n.eventually("the log grows", func() bool {
				info, err := os.Stat(file)
				return err == nil && info.Size() > 1000
			})
			old := file + "." + string(rune('a'+i))
			if err := os.Rename(file, old); err != nil {
				t.Fatal(err)
			}
			names = append(names, old)
			if _, err := n.ReopenContainerLog(n.ctx(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
				t.Fatal(err)
			}
		}
		n.eventually("the log grows", func() bool {
			info, err := os.Stat(file)
			return err == nil && info.Size() > 1000
		})
		if _, err := n.StopContainer(n.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		next := 0
		for _, name := range append(names, file) {
			body, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range strings.Split(strings.TrimSpace(string(body)), "\n") {
				f := strings.Fields(line)
				if f[len(f)-1] != itoa(next) {
					t.Fatalf("%s: %q, want line %d", name, line, next)
				}
				next++
			}
		}
		if _, err := n.ReopenContainerLog(n.ctx(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err == nil {
			t.Error("the log of a container that has ended was reopened")
		}
	})
}

func itoa(i int) string {
	b, _ := json.Marshal(i)
	return string(b)
}

func TestNetwork(t *testing.T) {
	n := newNode(t)
	networkReady := func() (bool, string) {
		r, err := n.Status(n.ctx(), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range r.Status.Conditions {
			if c.Type == runtimeapi.NetworkReady {
				return c.Status, c.Message
			}
		}
		t.Fatal("no condition NetworkReady")
		return false, ""
	}
	t.Run("host ports and the pod's identity reach the plugin", func(t *testing.T) {
		config := n.pod("ports")
		config.PortMappings = []*runtimeapi.PortMapping{
			{Protocol: runtimeapi.Protocol_UDP, ContainerPort: 53, HostPort: 5353, HostIp: "10.0.0.1"},
			{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80},
		}
		pod := n.runPod(config)
		body, err := os.ReadFile(filepath.Join(n.cniDir, pod))
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Args  string
			Ports []map[string]any
		}
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(got.Args, "K8S_POD_NAME=ports") || !strings.Contains(got.Args, "K8S_POD_NAMESPACE=default") ||
			!strings.Contains(got.Args, "K8S_POD_UID=uid-ports") {
			t.Errorf("CNI_ARGS %q", got.Args)
		}
		if len(got.Ports) != 1 || got.Ports[0]["hostPort"] != 5353.0 || got.Ports[0]["protocol"] != "udp" || got.Ports[0]["hostIP"] != "10.0.0.1" {
			t.Errorf("port mappings %v", got.Ports)
		}
	})
	t.Run("a plugin that fails leaves nothing", func(t *testing.T) {
		flag := filepath.Join(n.cniDir, "broken")
		if err := os.WriteFile(flag, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(flag)
		before, _ := os.ReadDir(n.cfg.NetNSDir)
		_, err := n.RunPodSandbox(n.ctx(), &runtimeapi.RunPodSandboxRequest{Config: n.pod("unlucky")})
		if err == nil || !strings.Contains(err.Error(), "no address left") {
			t.Errorf("error %v", err)
		}
		after, _ := os.ReadDir(n.cfg.NetNSDir)
		if len(before) != len(after) {
			t.Errorf("network namespaces before %v, after %v", before, after)
		}
	})
	t.Run("sysctls are the pod's own", func(t *testing.T) {
		config := n.pod("sysctl")
		config.Linux.Sysctls = map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "7", "net/ipv4/conf/lo/forwarding": "1", "kernel.shmmni": "77",
		}
		pod := n.runPod(config)
		got := n.output(pod, shell("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/conf/lo/forwarding /proc/sys/kernel/shmmni"))
		if got != "7\n1\n77" {
			t.Errorf("sysctls %q", got)
		}
		config.Linux.Sysctls = map[string]string{"vm.swappiness": "1"}
		if _, err := n.RunPodSandbox(n.ctx(), &runtimeapi.RunPodSandboxRequest{Config: config}); err == nil || !strings.Contains(err.Error(), "not namespaced") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("sysctls where /proc/sys is read-only", func(t *testing.T) {
		if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount("/proc/sys", unix.MNT_DETACH)
		if err := unix.MountSetattr(unix.AT_FDCWD, "/proc/sys", 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			t.Fatal(err)
		}
		config := n.pod("sysctlro")
		config.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "8", "kernel.shmmni": "78"}
		pod := n.runPod(config)
		if got := n.output(pod, shell("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmni")); got != "8\n78" {
			t.Errorf("sysctls %q", got)
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("9"), 0); !errors.Is(err, unix.EROFS) {
			t.Errorf("the node's own /proc/sys: %v", err)
		}
	})
	t.Run("a plugin that is not ready", func(t *testing.T) {
		flag := filepath.Join(n.cniDir, "unready")
		if err := os.WriteFile(flag, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		n.eventually("the network is not ready", func() bool {
			ready, message := networkReady()
			return !ready && strings.Contains(message, "not yet")
		})
		os.Remove(flag)
		n.eventually("the network is ready", func() bool { ready, _ := networkReady(); return ready })
	})
	t.Run("without a network only host network pods run", func(t *testing.T) {
		if err := os.Remove(filepath.Join(n.cfg.CNIConfDir, "10-test.conflist")); err != nil {
			t.Fatal(err)
		}
		defer n.installNetwork()
		if ready, message := networkReady(); ready || !strings.Contains(message, n.cfg.CNIConfDir) {
			t.Errorf("ready %v, message %q", ready, message)
		}
		if _, err := n.RunPodSandbox(n.ctx(), &runtimeapi.RunPodSandboxRequest{Config: n.pod("lonely")}); err == nil {
			t.Error("a pod ran without a network")
		}
		config := n.pod("host")
		config.Hostname = ""
		config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		pod := n.runPod(config)
		own, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		if got, want := n.output(pod, shell("readlink /proc/self/ns/net; hostname")), own+"\ntest-node"; got != want {
			t.Errorf("in the pod %q, want %q", got, want)
		}
	})
}

func TestStats(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("busy"))
	id := n.run(pod, shell("dd if=/dev/zero of=/var/tmp/file bs=1k count=512 2>/dev/null; while :; do :; done"))
	n.eventually("it uses the processor and its disk", func() bool {
		r, err := n.ContainerStats(n.ctx(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		return r.Stats.Cpu.UsageCoreNanoSeconds.Value > 1e8 && r.Stats.Cpu.UsageNanoCores.Value > 1e7 &&
			r.Stats.WritableLayer.UsedBytes.Value >= 512<<10
	})
	r, err := n.ListPodSandboxStats(n.ctx(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Stats) != 1 || len(r.Stats[0].Linux.Containers) != 1 {
		t.Fatalf("stats %v", r.Stats)
	}
	s := r.Stats[0].Linux
	if s.Memory.WorkingSetBytes.Value < 100<<10 || s.Process.ProcessCount.Value < 1 || s.Cpu.UsageCoreNanoSeconds.Value < 1e8 {
		t.Errorf("stats %v", s)
	}
	fs, err := n.images.ImageFsInfo(n.ctx(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if fs.ImageFilesystems[0].UsedBytes.Value == 0 || fs.ContainerFilesystems[0].InodesUsed.Value == 0 {
		t.Errorf("file systems %v", fs)
	}
	descriptors, err := n.ListMetricDescriptors(n.ctx(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]int{}
	for _, d := range descriptors.Descriptors {
		labels[d.Name] = len(d.LabelKeys)
	}
	metrics, err := n.ListPodSandboxMetrics(n.ctx(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, p := range metrics.PodMetrics {
		all := p.Metrics
		for _, c := range p.ContainerMetrics {
			all = append(all, c.Metrics...)
		}
		for _, m := range all {
			found[m.Name] = true
			if want, ok := labels[m.Name]; !ok || want != len(m.LabelValues) {
				t.Errorf("metric %s has %d labels and its descriptor %d", m.Name, len(m.LabelValues), want)
			}
		}
	}
	if !found["container_cpu_usage_seconds_total"] || !found["container_memory_working_set_bytes"] || !found["container_start_time_seconds"] {
		t.Errorf("metrics %v", found)
	}
}

func TestEvents(t *testing.T) {
	n := newNode(t)
	stream, err := n.GetContainerEvents(n.ctx(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	type event struct {
		id   string
		kind runtimeapi.ContainerEventType
	}
	events := make(chan event, 100)
	go func() {
		for {
			e, err := stream.Recv()
			if err != nil {
				close(events)
				return
			}
			events <- event{e.ContainerId, e.ContainerEventType}
		}
	}()
	pod := n.runPod(n.pod("watched"))
	var want []event
	// The stream may begin after a first change: keep changing until it shows.
	n.eventually("events come", func() bool {
		id := n.create(pod, ctr(probeImage))
		for late := time.After(100 * time.Millisecond); ; {
			select {
			case e := <-events: // or that of an earlier one, which was late
				if e == (event{id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT}) {
					return true
				}
			case <-late:
				return false
			}
		}
	})
	id := n.run(pod, ctr(probeImage, "exit", "0"))
	n.wait(id)
	if _, err := n.RemoveContainer(n.ctx(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	want = []event{
		{id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT}, {id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT},
		{id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT}, {id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT},
	}
	var got []event
	for len(got) < len(want) {
		select {
		case e := <-events:
			got = append(got, e)
		case <-time.After(30 * time.Second):
			t.Fatalf("events %v, want %v", got, want)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}
