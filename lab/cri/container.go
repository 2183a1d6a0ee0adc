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

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-net/weft/lab/cri/procs"
	"github.com/weft-net/weft/lab/cri/wire"
)

// containerFile is the record of a container in its directory, next to what it shares with the shim.
const containerFile = "container.json"

// containerRecord is what the server has to find again of a container.
type containerRecord struct {
	ID         string
	SandboxID  string
	Config     *runtimeapi.ContainerConfig
	ImageID    string
	ImageRef   string
	ImageName  string // what the pod's author calls it, normalised
	LogPath    string
	StopSignal int // Linux number
	CreatedAt  int64
	User       wire.User
	Resources  *runtimeapi.LinuxContainerResources `json:",omitempty"`
}

// container is a container of a pod.
type container struct {
	dir string

	op sync.Mutex // held by Start and Remove

	mu     sync.Mutex // of the fields below
	rec    containerRecord
	state  *wire.Status  // nil until the shim was asked to start it
	exited chan struct{} // closed when state is Exited
	lost   bool          // it ended with its shim, with nobody to see how
}

func newContainer(dir string, rec containerRecord) *container {
	return &container{dir: dir, rec: rec, exited: make(chan struct{})}
}

func (c *container) save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return wire.WriteFile(filepath.Join(c.dir, containerFile), &c.rec)
}

// CreateContainer resolves the image and writes down what the shim will do at StartContainer.
func (s *server) CreateContainer(_ context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	sb, err := s.sandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	if !sb.ready() {
		return nil, status.Errorf(codes.FailedPrecondition, "pod sandbox %s is not ready", req.PodSandboxId)
	}
	if req.Config == nil || req.Config.Metadata == nil {
		return nil, status.Error(codes.InvalidArgument, "container config: metadata is missing")
	}
	rec := containerRecord{ID: newID(), SandboxID: sb.rec.ID, Config: req.Config, CreatedAt: time.Now().UnixNano()}
	rec.Resources = req.Config.GetLinux().GetResources()
	c := newContainer(filepath.Join(s.cfg.containersDir(), rec.ID), rec)
	spec, err := s.buildSpec(sb, c)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"upper", "work", "rootfs"} {
		if err := os.MkdirAll(filepath.Join(c.dir, d), 0o755); err != nil {
			return nil, errors.Join(fmt.Errorf("container directory: %w", err), os.RemoveAll(c.dir))
		}
	}
	err = wire.WriteFile(filepath.Join(c.dir, wire.SpecName), spec)
	if err = errors.Join(err, c.save()); err != nil {
		return nil, errors.Join(err, os.RemoveAll(c.dir))
	}
	s.mu.Lock()
	s.containers[rec.ID] = c
	s.mu.Unlock()
	s.events.container(c, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, s)
	return &runtimeapi.CreateContainerResponse{ContainerId: rec.ID}, nil
}

// StartContainer has the shim run the container. If it can't be run it ends with exit code 128.
func (s *server) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if st := c.status(); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is in state %s, only a created one starts", c.rec.ID, st.State)
	}
	sb, err := s.sandbox(c.rec.SandboxID)
	if err != nil {
		return nil, err
	}
	reply, err := sb.ask(ctx, wire.Request{Op: wire.OpStart, Dir: c.dir})
	if reply.Status != nil {
		s.observe(*reply.Status)
	}
	if err != nil {
		return nil, status.Errorf(codes.Unknown, "start container %q: %v", c.rec.Config.Metadata.Name, err)
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer sends the container its stop signal and, after timeout seconds, kills it. It returns when the
// container has ended.
func (s *server) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c, err := s.container(req.ContainerId)
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err := s.stopContainer(ctx, c, time.Duration(req.Timeout)*time.Second); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// killPatience bounds the wait for a killed process. Only one that hangs in the kernel takes that long.
const killPatience = 10 * time.Second

func (s *server) stopContainer(ctx context.Context, c *container, grace time.Duration) error {
	if c.status().State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil
	}
	sb, err := s.sandbox(c.rec.SandboxID)
	if err != nil {
		return err
	}
	signal := func(sig int, all bool) error {
		_, err := sb.ask(ctx, wire.Request{Op: wire.OpSignal, Container: c.rec.ID, Signal: sig, All: all})
		select {
		case <-c.exited:
			return nil // it ended before the signal came
		default:
		}
		if errors.Is(err, errShimGone) {
			return nil // shimGone will tell
		}
		return err
	}
	if grace > 0 {
		if err := signal(c.rec.StopSignal, false); err != nil {
			return fmt.Errorf("stop container: %w", err)
		}
		after := time.NewTimer(grace)
		defer after.Stop()
		select {
		case <-c.exited:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-after.C:
		}
	}
	if err := signal(int(unix.SIGKILL), true); err != nil {
		return fmt.Errorf("kill container: %w", err)
	}
	after := time.NewTimer(killPatience)
	defer after.Stop()
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-after.C:
		return fmt.Errorf("container %s did not end within %s of being killed", c.rec.ID, killPatience)
	}
}

// RemoveContainer forgets a container and its files, killing it first if need be.
func (s *server) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	c, err := s.container(req.ContainerId)
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	if err := s.removeContainer(ctx, c); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (s *server) removeContainer(ctx context.Context, c *container) error {
	c.op.Lock()
	defer c.op.Unlock()
	if err := s.stopContainer(ctx, c, 0); err != nil {
		return err
	}
	if sb, err := s.sandbox(c.rec.SandboxID); err == nil {
		// Whatever the answer, the container doesn't run: the shim may be gone or may never have heard of it.
		_, _ = sb.ask(ctx, wire.Request{Op: wire.OpRemove, Container: c.rec.ID})
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("remove container: %w", err)
	}
	s.mu.Lock()
	_, had := s.containers[c.rec.ID]
	delete(s.containers, c.rec.ID)
	s.mu.Unlock()
	s.usage.forget(c.rec.ID)
	if had {
		s.events.container(c, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, s)
	}
	return nil
}

// observe takes in what a shim says of a container.
func (s *server) observe(st wire.Status) {
	s.mu.Lock()
	c := s.containers[st.ID]
	s.mu.Unlock()
	if c == nil {
		return
	}
	switch c.observe(st) {
	case wire.Running:
		s.events.container(c, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, s)
	case wire.Exited:
		s.events.container(c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, s)
	}
}

// observe returns the new state, or "" if st brought nothing new.
func (c *container) observe(st wire.Status) wire.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != nil && (c.state.State == wire.Exited || c.state.State == st.State) {
		return ""
	}
	c.state = &st
	if st.State == wire.Exited {
		close(c.exited)
	}
	return st.State
}

// settle reads what the gone shim of a sandbox wrote down last, and declares killed whatever it left running.
func (s *server) settle(sb *sandbox) {
	for _, c := range s.containersOf(sb.rec.ID) {
		var st wire.Status
		err := wire.ReadFile(filepath.Join(c.dir, wire.StatusName), &st)
		if errors.Is(err, os.ErrNotExist) {
			continue // never started
		}
		if err != nil {
			s.log.Error("container's status", "container", c.rec.ID, "error", err)
		}
		if st.State != wire.Exited {
			procs.KillMountNamespace(st.MountNS)
			st.ID, st.State, st.ExitCode, st.FinishedAt = c.rec.ID, wire.Exited, 128+int(unix.SIGKILL), time.Now().UnixNano()
			c.mu.Lock()
			c.lost = true
			c.mu.Unlock()
			if err := wire.WriteFile(filepath.Join(c.dir, wire.StatusName), st); err != nil {
				s.log.Error("container's status", "container", c.rec.ID, "error", err)
			}
		}
		s.observe(st)
	}
}

// status is the container's in the terms of the CRI.
func (c *container) status() *runtimeapi.ContainerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.rec
	st := &runtimeapi.ContainerStatus{
		Id: r.ID, Metadata: r.Config.Metadata, CreatedAt: r.CreatedAt,
		Image: &runtimeapi.ImageSpec{Image: r.ImageName}, ImageRef: r.ImageRef, ImageId: r.ImageID,
		Labels: r.Config.Labels, Annotations: r.Config.Annotations, Mounts: r.Config.Mounts,
		LogPath: r.LogPath, StopSignal: signalOfNumber(r.StopSignal),
		Resources: &runtimeapi.ContainerResources{Linux: r.Resources},
		User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{
			Uid: int64(r.User.UID), Gid: int64(r.User.GID),
		}},
	}
	for _, g := range r.User.Groups {
		st.User.Linux.SupplementalGroups = append(st.User.Linux.SupplementalGroups, int64(g))
	}
	switch {
	case c.state == nil:
		st.State = runtimeapi.ContainerState_CONTAINER_CREATED
		return st
	case c.state.State == wire.Running:
		st.State, st.StartedAt = runtimeapi.ContainerState_CONTAINER_RUNNING, c.state.StartedAt
		return st
	}
	st.State = runtimeapi.ContainerState_CONTAINER_EXITED
	st.StartedAt, st.FinishedAt, st.ExitCode = c.state.StartedAt, c.state.FinishedAt, int32(c.state.ExitCode)
	switch {
	case c.state.StartError != "":
		st.Reason, st.Message = "StartError", c.state.StartError
	case c.lost:
		st.Reason, st.Message = "Error", "the pod's shim was killed, and the container with it"
	case st.ExitCode == 0:
		st.Reason = "Completed"
	default:
		st.Reason = "Error"
	}
	return st
}

// ContainerStatus describes a container; with Verbose also its process.
func (s *server) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: c.status()}
	if req.Verbose {
		resp.Info = map[string]string{"sandboxID": c.rec.SandboxID, "dir": c.dir}
		if pid := c.pid(); pid != 0 {
			resp.Info["pid"] = fmt.Sprint(pid)
		}
	}
	return resp, nil
}

// pid is that of the running container's process, 0 when it does not run.
func (c *container) pid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == nil || c.state.State != wire.Running {
		return 0
	}
	return c.state.PID
}

// ListContainers lists containers, the newest first.
func (s *server) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.listContainers(req.Filter)}, nil
}

// StreamContainers is ListContainers in pieces.
func (s *server) StreamContainers(req *runtimeapi.StreamContainersRequest, to runtimeapi.RuntimeService_StreamContainersServer) error {
	return inPieces(s.listContainers(req.Filter), func(part []*runtimeapi.Container) error {
		return to.Send(&runtimeapi.StreamContainersResponse{Containers: part})
	})
}

func (s *server) listContainers(filter *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	var items []*runtimeapi.Container
	for _, c := range s.sortedContainersOf("") {
		st := c.status()
		if filter != nil {
			if filter.Id != "" && !strings.HasPrefix(st.Id, filter.Id) ||
				filter.State != nil && filter.State.State != st.State ||
				filter.PodSandboxId != "" && !strings.HasPrefix(c.rec.SandboxID, filter.PodSandboxId) ||
				!selects(filter.LabelSelector, st.Labels) {
				continue
			}
		}
		items = append(items, &runtimeapi.Container{
			Id: st.Id, PodSandboxId: c.rec.SandboxID, Metadata: st.Metadata, Image: st.Image, ImageRef: st.ImageRef,
			ImageId: st.ImageId, State: st.State, CreatedAt: st.CreatedAt, Labels: st.Labels, Annotations: st.Annotations,
		})
	}
	return items
}

// sortedContainersOf returns the containers of a sandbox, or with "" all, the newest first.
func (s *server) sortedContainersOf(sandboxID string) []*container {
	s.mu.Lock()
	var all []*container
	for _, c := range s.containers {
		if sandboxID == "" || c.rec.SandboxID == sandboxID {
			all = append(all, c)
		}
	}
	s.mu.Unlock()
	sort.Slice(all, func(i, j int) bool { return all[i].rec.CreatedAt > all[j].rec.CreatedAt })
	return all
}

// UpdateContainerResources records the new resources and has no other effect: the lab has no cgroups.
func (s *server) UpdateContainerResources(_ context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if req.Linux != nil {
		c.mu.Lock()
		c.rec.Resources = req.Linux
		c.mu.Unlock()
		if err := c.save(); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// ReopenContainerLog is called after kubelet has renamed a log file.
func (s *server) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if c.pid() == 0 {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is not running", c.rec.ID)
	}
	sb, err := s.sandbox(c.rec.SandboxID)
	if err != nil {
		return nil, err
	}
	if _, err := sb.ask(ctx, wire.Request{Op: wire.OpReopen, Container: c.rec.ID}); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
