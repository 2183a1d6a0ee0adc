// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/addresses"
	"github.com/weft-net/weft/internal/kube"
)

// Cleanup takes back everything that weft wrote on Services: addresses, conditions, annotations, and the finalizer, without which
// nobody could delete them once no controller runs. It returns how many Services it freed; the error joins those that
// it could not. No controller may run meanwhile.
func Cleanup(ctx context.Context, api *rest.Config, opts addresses.Options) (int, error) {
	d, err := kube.Snapshot(ctx, api, kube.Services)
	if err != nil {
		return 0, err
	}
	client, err := kubernetes.NewForConfig(api)
	if err != nil {
		return 0, fmt.Errorf("API client: %w", err)
	}
	freed := 0
	var bad []error
	for name, s := range d.Services {
		due := patches(s, addresses.Decision{}, opts, time.Now())
		if err := send(ctx, client, name, due); err != nil {
			bad = append(bad, fmt.Errorf("service %s: %w", name, err))
		} else if len(due) > 0 {
			freed++
		}
	}
	return freed, errors.Join(bad...)
}
