// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// broadcaster hands container events to the streams of GetContainerEvents.
type broadcaster struct {
	mu     sync.Mutex
	to     map[chan *runtimeapi.ContainerEventResponse]struct{}
	closed bool
}

func newBroadcaster() *broadcaster {
	return &broadcaster{to: map[chan *runtimeapi.ContainerEventResponse]struct{}{}}
}

// eventBacklog is how many events a stream may lag behind before it is cut, upon which kubelet lists everything.
const eventBacklog = 1024

func (b *broadcaster) subscribe() chan *runtimeapi.ContainerEventResponse {
	b.mu.Lock()
	defer b.mu.Unlock()
	ch := make(chan *runtimeapi.ContainerEventResponse, eventBacklog)
	if b.closed {
		close(ch)
		return ch
	}
	b.to[ch] = struct{}{}
	return ch
}

func (b *broadcaster) unsubscribe(ch chan *runtimeapi.ContainerEventResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.to[ch]; ok {
		delete(b.to, ch)
		close(ch)
	}
}

func (b *broadcaster) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for ch := range b.to {
		delete(b.to, ch)
		close(ch)
	}
}

// idle reports that nobody listens, so that events need not be made.
func (b *broadcaster) idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.to) == 0
}

func (b *broadcaster) send(e *runtimeapi.ContainerEventResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch := range b.to {
		select {
		case ch <- e:
		default:
			delete(b.to, ch)
			close(ch)
		}
	}
}

// container tells of a change of a container.
func (b *broadcaster) container(c *container, kind runtimeapi.ContainerEventType, s *server) {
	if b.idle() {
		return
	}
	b.send(s.event(c.rec.ID, c.rec.SandboxID, kind))
}

// sandbox tells of a change of a sandbox itself.
func (b *broadcaster) sandbox(sb *sandbox, kind runtimeapi.ContainerEventType, s *server) {
	if b.idle() {
		return
	}
	b.send(s.event(sb.rec.ID, sb.rec.ID, kind))
}

func (s *server) event(id, sandboxID string, kind runtimeapi.ContainerEventType) *runtimeapi.ContainerEventResponse {
	e := &runtimeapi.ContainerEventResponse{ContainerId: id, ContainerEventType: kind, CreatedAt: time.Now().UnixNano()}
	if sb, err := s.sandbox(sandboxID); err == nil {
		e.PodSandboxStatus = sb.status()
	}
	for _, c := range s.sortedContainersOf(sandboxID) {
		e.ContainersStatuses = append(e.ContainersStatuses, c.status())
	}
	return e
}

// GetContainerEvents streams changes from now on, for kubelet's event-driven view of its pods.
func (s *server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, to runtimeapi.RuntimeService_GetContainerEventsServer) error {
	events := s.events.subscribe()
	defer s.events.unsubscribe(events)
	for {
		select {
		case <-to.Context().Done():
			return nil
		case e, ok := <-events:
			if !ok {
				return status.Error(codes.Unavailable, "event stream cut: listen anew and list what there is")
			}
			if err := to.Send(e); err != nil {
				return err
			}
		}
	}
}
