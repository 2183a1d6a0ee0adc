// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-net/weft/lab/cri/wire"
)

// sandboxFile is the record of a sandbox in its directory.
const sandboxFile = "sandbox.json"

// sandboxRecord is what the server has to find again of a sandbox.
type sandboxRecord struct {
	ID        string
	Config    *runtimeapi.PodSandboxConfig
	CreatedAt int64
	// Complete is set at the end of RunPodSandbox. A record without it is what a killed server left half-way.
	Complete    bool
	Stopped     bool
	ShimPID     int
	NetNS       string            // "" for a pod in the node's network
	Network     *attachment       `json:",omitempty"`
	Hostname    string            `json:",omitempty"`
	Sysctls     map[string]string `json:",omitempty"`
	HostNetwork bool
	HostIPC     bool
	SharedPID   bool
}

// sandbox is a pod's sandbox: namespaces, held by a shim, and a place in the network.
type sandbox struct {
	dir string

	op sync.Mutex // held by StopPodSandbox and RemovePodSandbox, which do their work once

	mu  sync.Mutex // of the fields below
	rec sandboxRecord
	// alive is false once the shim has gone; stopping is set when the server makes it go.
	alive, stopping bool
}

func (sb *sandbox) save() error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return wire.WriteFile(filepath.Join(sb.dir, sandboxFile), &sb.rec)
}

func (sb *sandbox) ready() bool {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.alive && sb.rec.Complete && !sb.rec.Stopped
}

// RunPodSandbox makes the pod's namespaces, wires its network and starts its shim.
func (s *server) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	config := req.Config
	if config == nil || config.Metadata == nil {
		return nil, status.Error(codes.InvalidArgument, "sandbox config: metadata is missing")
	}
	if req.RuntimeHandler != "" {
		return nil, status.Errorf(codes.InvalidArgument,
			"runtime handler %q is not known: the lab has only the default one", req.RuntimeHandler)
	}
	sb, err := s.newSandbox(config)
	if err != nil {
		return nil, err
	}
	if err := s.bringUp(ctx, sb); err != nil {
		// The context may be what failed; taking things down must not depend on it.
		if undo := s.takeDown(context.WithoutCancel(ctx), sb); undo != nil {
			s.log.Error("sandbox is left half-way; the next start of the server removes it", "sandbox", sb.rec.ID, "error", undo)
			return nil, err
		}
		if undo := os.RemoveAll(sb.dir); undo != nil {
			s.log.Error("remove failed sandbox", "sandbox", sb.rec.ID, "error", undo)
		}
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: sb.rec.ID}, nil
}

// newSandbox decides what the sandbox will be and records it.
func (s *server) newSandbox(config *runtimeapi.PodSandboxConfig) (*sandbox, error) {
	rec := sandboxRecord{ID: newID(), Config: config, CreatedAt: time.Now().UnixNano(), Hostname: config.Hostname}
	linux := config.GetLinux()
	ns := linux.GetSecurityContext().GetNamespaceOptions()
	rec.HostNetwork = ns.GetNetwork() == runtimeapi.NamespaceMode_NODE
	rec.HostIPC = ns.GetIpc() == runtimeapi.NamespaceMode_NODE
	rec.SharedPID = ns.GetPid() == runtimeapi.NamespaceMode_POD
	if u := ns.GetUsernsOptions(); u != nil && u.Mode == runtimeapi.NamespaceMode_POD {
		return nil, status.Error(codes.InvalidArgument,
			"the lab has no user namespaces for pods: leave out spec.hostUsers: false")
	}
	rec.Sysctls = linux.GetSysctls()
	for name := range rec.Sysctls {
		switch scope := sysctlScope(name); {
		case scope == "":
			return nil, status.Errorf(codes.InvalidArgument, "sysctl %q is not namespaced: it would change the host", name)
		case scope == "network" && rec.HostNetwork, scope == "ipc" && rec.HostIPC:
			return nil, status.Errorf(codes.InvalidArgument, "sysctl %q needs a pod with its own %s namespace", name, scope)
		}
	}
	if !rec.HostNetwork {
		rec.NetNS = filepath.Join(s.cfg.NetNSDir, "cni-"+rec.ID[:32])
		a, err := s.net.prepare(config, rec.ID)
		if err != nil {
			return nil, err
		}
		rec.Network = a
	}
	sb := &sandbox{dir: filepath.Join(s.cfg.sandboxesDir(), rec.ID), rec: rec}
	if err := os.MkdirAll(filepath.Join(sb.dir, "shm"), 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(filepath.Join(sb.dir, "shm"), 0o777|os.ModeSticky); err != nil {
		return nil, err
	}
	if err := s.writePodFiles(sb); err != nil {
		return nil, errors.Join(err, os.RemoveAll(sb.dir))
	}
	if err := sb.save(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(sb.dir))
	}
	return sb, nil
}

// writePodFiles makes the files that a pod's containers share and kubelet doesn't make.
func (s *server) writePodFiles(sb *sandbox) error {
	var resolv []byte
	if dns := sb.rec.Config.DnsConfig; dns != nil {
		resolv = resolvConf(dns)
	} else if node, err := os.ReadFile(s.cfg.ResolvConf); err == nil {
		resolv = node
	}
	hostname := sb.rec.Hostname
	if hostname == "" {
		hostname, _ = os.Hostname()
	}
	return errors.Join(
		os.WriteFile(filepath.Join(sb.dir, "resolv.conf"), resolv, 0o644),
		os.WriteFile(filepath.Join(sb.dir, "hostname"), []byte(hostname+"\n"), 0o644),
	)
}

func (s *server) bringUp(ctx context.Context, sb *sandbox) error {
	if dir := sb.rec.Config.LogDirectory; dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("log directory: %w", err)
		}
	}
	// The shim needs the namespace but not what CNI puts into it, so both go at once.
	wired := make(chan error, 1)
	if sb.rec.NetNS == "" {
		wired <- nil
	} else {
		net := map[string]string{}
		for name, value := range sb.rec.Sysctls {
			if sysctlScope(name) == "network" {
				net[name] = value
			}
		}
		if err := newNetNS(sb.rec.NetNS, net); err != nil {
			return err
		}
		go func() { wired <- s.net.add(ctx, sb.rec.Network, sb.rec.ID, sb.rec.NetNS) }()
	}
	err := startShim(&s.cfg, sb)
	if err = errors.Join(err, <-wired); err != nil {
		return err
	}
	sb.rec.Complete = true
	if err := sb.save(); err != nil {
		return err
	}
	c, first, err := watchShim(sb.dir)
	if err != nil {
		return err
	}
	sb.alive = true
	s.mu.Lock()
	s.sandboxes[sb.rec.ID] = sb
	s.mu.Unlock()
	go s.follow(sb, c, first)
	return nil
}

// takeDown ends the shim with all containers, and gives back the pod's place in the network. It may be repeated.
func (s *server) takeDown(ctx context.Context, sb *sandbox) error {
	if _, err := sb.ask(ctx, wire.Request{Op: wire.OpExit}); err != nil && !errors.Is(err, errShimGone) {
		return fmt.Errorf("stop the pod's shim: %w", err)
	}
	if sb.rec.NetNS == "" {
		return nil
	}
	if sb.rec.Network != nil {
		netns := sb.rec.NetNS
		if _, err := os.Stat(netns); err != nil {
			netns = ""
		}
		if err := s.net.del(ctx, sb.rec.Network, sb.rec.ID, netns); err != nil {
			return err
		}
	}
	return removeNetNS(sb.rec.NetNS)
}

// StopPodSandbox kills what still runs in the pod and takes it out of the network. It may be repeated.
func (s *server) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	sb, err := s.sandbox(req.PodSandboxId)
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	if err := s.stopSandbox(ctx, sb); err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (s *server) stopSandbox(ctx context.Context, sb *sandbox) error {
	sb.op.Lock()
	defer sb.op.Unlock()
	if sb.rec.Stopped {
		return nil
	}
	sb.mu.Lock()
	sb.stopping = true
	sb.mu.Unlock()
	if err := s.takeDown(ctx, sb); err != nil {
		return err
	}
	s.settle(sb)
	sb.mu.Lock()
	sb.rec.Stopped = true
	sb.mu.Unlock()
	return sb.save()
}

// RemovePodSandbox forgets the sandbox and its containers, stopping them first if need be.
func (s *server) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	sb, err := s.sandbox(req.PodSandboxId)
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	if err := s.stopSandbox(ctx, sb); err != nil {
		return nil, err
	}
	for _, c := range s.containersOf(sb.rec.ID) {
		if err := s.removeContainer(ctx, c); err != nil {
			return nil, err
		}
	}
	sb.op.Lock()
	defer sb.op.Unlock()
	if err := os.RemoveAll(sb.dir); err != nil {
		return nil, fmt.Errorf("remove sandbox: %w", err)
	}
	s.mu.Lock()
	delete(s.sandboxes, sb.rec.ID)
	s.mu.Unlock()
	s.events.sandbox(sb, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, s)
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// shimGone notes that a sandbox's shim has ended: its containers have, too.
func (s *server) shimGone(sb *sandbox) {
	sb.mu.Lock()
	was := sb.alive
	sb.alive = false
	expected := sb.stopping
	sb.mu.Unlock()
	if !was {
		return
	}
	s.settle(sb)
	if !expected {
		s.log.Warn("a pod's shim is gone", "sandbox", sb.rec.ID, "pod", podName(sb))
	}
	s.events.sandbox(sb, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, s)
}

func podName(sb *sandbox) string {
	return sb.rec.Config.Metadata.Namespace + "/" + sb.rec.Config.Metadata.Name
}

// PodSandboxStatus describes a sandbox; with Verbose also its process and namespace.
func (s *server) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	sb, err := s.sandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{Status: sb.status(), Timestamp: time.Now().UnixNano()}
	for _, c := range s.sortedContainersOf(sb.rec.ID) {
		resp.ContainersStatuses = append(resp.ContainersStatuses, c.status())
	}
	if req.Verbose {
		resp.Info = map[string]string{
			"pid":   fmt.Sprint(sb.rec.ShimPID),
			"netns": sb.rec.NetNS,
		}
	}
	return resp, nil
}

func (sb *sandbox) status() *runtimeapi.PodSandboxStatus {
	st := &runtimeapi.PodSandboxStatus{
		Id: sb.rec.ID, Metadata: sb.rec.Config.Metadata, State: sb.state(), CreatedAt: sb.rec.CreatedAt,
		Labels: sb.rec.Config.Labels, Annotations: sb.rec.Config.Annotations,
		Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{
			Options: sb.rec.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
	}
	if n := sb.rec.Network; n != nil && st.State == runtimeapi.PodSandboxState_SANDBOX_READY {
		for i, ip := range n.IPs {
			if i == 0 {
				st.Network.Ip = ip
				continue
			}
			st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
		}
	}
	return st
}

func (sb *sandbox) state() runtimeapi.PodSandboxState {
	if sb.ready() {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// ListPodSandbox lists sandboxes, the newest first.
func (s *server) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.listSandboxes(req.Filter)}, nil
}

// StreamPodSandboxes is ListPodSandbox in pieces.
func (s *server) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, to runtimeapi.RuntimeService_StreamPodSandboxesServer) error {
	return inPieces(s.listSandboxes(req.Filter), func(part []*runtimeapi.PodSandbox) error {
		return to.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: part})
	})
}

func (s *server) listSandboxes(filter *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	s.mu.Lock()
	all := make([]*sandbox, 0, len(s.sandboxes))
	for _, sb := range s.sandboxes {
		all = append(all, sb)
	}
	s.mu.Unlock()
	sort.Slice(all, func(i, j int) bool { return all[i].rec.CreatedAt > all[j].rec.CreatedAt })
	var items []*runtimeapi.PodSandbox
	for _, sb := range all {
		state := sb.state()
		if filter != nil {
			if filter.Id != "" && !strings.HasPrefix(sb.rec.ID, filter.Id) ||
				filter.State != nil && filter.State.State != state ||
				!selects(filter.LabelSelector, sb.rec.Config.Labels) {
				continue
			}
		}
		items = append(items, &runtimeapi.PodSandbox{
			Id: sb.rec.ID, Metadata: sb.rec.Config.Metadata, State: state, CreatedAt: sb.rec.CreatedAt,
			Labels: sb.rec.Config.Labels, Annotations: sb.rec.Config.Annotations,
		})
	}
	return items
}

// selects reports whether labels have all the selector's values.
func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// piece is how many items a streamed list has in one message.
const piece = 100

func inPieces[T any](all []T, send func([]T) error) error {
	for len(all) > 0 {
		n := min(piece, len(all))
		if err := send(all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

// UpdatePodSandboxResources is accepted and has no effect: the lab has no cgroups.
func (s *server) UpdatePodSandboxResources(_ context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	if _, err := s.sandbox(req.PodSandboxId); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}
