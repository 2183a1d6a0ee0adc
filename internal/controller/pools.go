// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"reflect"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/addresses"
	"github.com/weft-net/weft/internal/model"
)

// writePool brings an AddressPool's status to what was found, if it is not there.
func (p *LoadBalancers) writePool(ctx context.Context, name model.Name) error {
	p.mu.Lock()
	want, ok := p.state[name.Name]
	p.mu.Unlock()
	if !ok {
		return nil
	}
	client := p.pools.Resource(v1alpha1.AddressPools)
	u, err := client.Get(ctx, name.Name, metav1.GetOptions{})
	if err != nil || string(u.GetUID()) != want.UID {
		return err // one created anew has a status of its own to come
	}
	var pool v1alpha1.AddressPool
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &pool); err != nil {
		return err
	}
	status := poolStatus(pool.Status.DeepCopy(), want)
	if reflect.DeepEqual(*status, pool.Status) {
		return nil
	}
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(status)
	if err != nil {
		return err
	}
	u.Object["status"] = raw
	if _, err = client.UpdateStatus(ctx, u, metav1.UpdateOptions{FieldManager: fieldManager}); err == nil {
		p.metrics.written.WithLabelValues("AddressPool").Inc()
	}
	return err
}

// poolStatus writes what was found into a status; conditions of others, and the time since when ours holds, stay.
func poolStatus(s *v1alpha1.AddressPoolStatus, want addresses.PoolStatus) *v1alpha1.AddressPoolStatus {
	s.ObservedGeneration = want.Generation
	s.IPv4, s.IPv6 = usage(want.IPv4), usage(want.IPv6)
	c := metav1.Condition{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionFalse,
		Reason: want.Reason, Message: want.Message, ObservedGeneration: want.Generation}
	if want.Accepted {
		c.Status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&s.Conditions, c)
	return s
}

func usage(u addresses.Usage) *v1alpha1.AddressPoolUsage {
	if u.Total == 0 {
		return nil
	}
	return &v1alpha1.AddressPoolUsage{Total: u.Total, Used: u.Used, Free: u.Free}
}
