// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/weft-net/weft/lab/components"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podGrace is how long a container has to end when its node shuts down, in seconds.
const podGrace = 10

// stopPods ends every pod of the node at the same time, through the CRI.
func stopPods() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*podGrace*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+components.CRISocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	cri := runtime.NewRuntimeServiceClient(conn)
	containers, err := cri.ListContainers(ctx, &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{
		State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	sandboxes, err := cri.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	err = each(containers.Containers, func(c *runtime.Container) error {
		_, err := cri.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.Id, Timeout: podGrace})
		return err
	})
	return errors.Join(err, each(sandboxes.Items, func(s *runtime.PodSandbox) error {
		_, err := cri.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: s.Id})
		return err
	}))
}

// each calls f for all items at once and waits for all.
func each[T any](items []T, f func(T) error) error {
	errs := make([]error, len(items))
	var wg sync.WaitGroup
	for i, item := range items {
		wg.Go(func() { errs[i] = f(item) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
