// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"

	"github.com/weft-net/weft/lab/images"
)

// maxMessage is the limit on a gRPC message, in bytes, that kubelet uses too.
const maxMessage = 16 << 20

// server implements RuntimeService and ImageService.
type server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	cfg    Config
	log    *slog.Logger
	images *images.Store
	net    *network
	stream streaming.Server
	events *broadcaster
	usage  *usageTracker
	absent *imageSet // images that kubelet removed from this node
	pulls  *images.Puller

	mu         sync.Mutex
	sandboxes  map[string]*sandbox
	containers map[string]*container
}

// Run serves the CRI until ctx ends. Pods survive that, and the next Run with the same Config.Root takes them over.
func Run(ctx context.Context, cfg Config) error {
	s, err := newServer(cfg)
	if err != nil {
		return err
	}
	if err := s.adopt(ctx); err != nil {
		return err
	}
	if err := os.Remove(s.cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cri: %w", err)
	}
	streams, err := s.serveStreams()
	if err != nil {
		return err
	}
	defer streams.Close()
	l, err := net.Listen("unix", s.cfg.Socket)
	if err != nil {
		return fmt.Errorf("cri: %w", err)
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.UnaryInterceptor(s.logFailure))
	runtimeapi.RegisterRuntimeServiceServer(g, s)
	runtimeapi.RegisterImageServiceServer(g, s)
	stopped := context.AfterFunc(ctx, func() {
		s.events.close()
		g.Stop()
	})
	defer stopped()
	s.log.Info("serving CRI", "socket", s.cfg.Socket, "node", s.cfg.Node)
	if err := g.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("cri: %w", err)
	}
	return nil
}

func newServer(cfg Config) (*server, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	store, err := images.Open(cfg.ImageDir)
	if err != nil {
		return nil, err
	}
	s := &server{
		cfg:        cfg,
		log:        cfg.Log.With("component", "cri", "node", cfg.Node),
		images:     store,
		net:        newNetwork(&cfg),
		events:     newBroadcaster(),
		usage:      newUsageTracker(),
		pulls:      images.NewPuller(store),
		sandboxes:  map[string]*sandbox{},
		containers: map[string]*container{},
	}
	if s.absent, err = openImageSet(cfg.Root); err != nil {
		return nil, err
	}
	return s, nil
}

// logFailure writes failed calls to the log: kubelet shows only some of them.
func (s *server) logFailure(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	begin := time.Now()
	reply, err := h(ctx, req)
	if err != nil && status.Code(err) != codes.NotFound && status.Code(err) != codes.Unimplemented {
		s.log.Warn("call failed", "method", info.FullMethod, "took", time.Since(begin), "error", err)
	} else {
		s.log.Debug("call", "method", info.FullMethod, "took", time.Since(begin))
	}
	return reply, err
}

// newID returns 64 random hex digits, the usual form of sandbox and container IDs.
func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func (s *server) sandbox(id string) (*sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sb := find(s.sandboxes, id); sb != nil {
		return sb, nil
	}
	return nil, status.Errorf(codes.NotFound, "pod sandbox %q not found", id)
}

func (s *server) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := find(s.containers, id); c != nil {
		return c, nil
	}
	return nil, status.Errorf(codes.NotFound, "container %q not found", id)
}

// find looks an ID up, or the only one that begins with it: people type the first digits.
func find[T any](all map[string]*T, id string) *T {
	if v := all[id]; v != nil || len(id) < 4 {
		return v
	}
	var found *T
	for k, v := range all {
		if len(k) > len(id) && k[:len(id)] == id {
			if found != nil {
				return nil
			}
			found = v
		}
	}
	return found
}

// containersOf returns the containers of a sandbox.
func (s *server) containersOf(sandboxID string) []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	var cs []*container
	for _, c := range s.containers {
		if c.rec.SandboxID == sandboxID {
			cs = append(cs, c)
		}
	}
	return cs
}

// Version answers with the name that pods' container IDs carry: weft://ID.
func (s *server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version: "0.1.0", RuntimeName: "weft-lab", RuntimeVersion: "1.0.0", RuntimeApiVersion: "v1",
	}, nil
}

// Status says whether pods can run (always) and whether they can have a network.
func (s *server) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	ready := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.net.status(ctx); err != nil {
		ready.Status, ready.Reason, ready.Message = false, "NetworkPluginNotReady", err.Error()
	}
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, ready,
		}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{
			Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true},
		}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	if req.Verbose {
		resp.Info = map[string]string{"root": s.cfg.Root, "cniConfDir": s.cfg.CNIConfDir}
	}
	return resp, nil
}

// RuntimeConfig names a cgroup driver since kubelet asks; the lab has no cgroups.
func (s *server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{
		Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS},
	}, nil
}

// UpdateRuntimeConfig is told the node's pod range, which CNI plugins of the lab learn from the API server.
func (s *server) UpdateRuntimeConfig(context.Context, *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
