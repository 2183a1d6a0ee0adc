// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/model"
)

// FromAddressPool translates an AddressPool. Entries of spec.addresses that can't be read are named in the value's
// Invalid, for the pool's status; the error names what else was left out. A selector that can't be read admits no
// Service.
func FromAddressPool(p *v1alpha1.AddressPool) (*model.AddressPool, error) {
	var bad problems
	out := &model.AddressPool{
		Meta:              fromMeta(&p.ObjectMeta),
		NamespaceSelector: bad.selector("spec.namespaceSelector", p.Spec.NamespaceSelector),
		ServiceSelector:   bad.selector("spec.serviceSelector", p.Spec.ServiceSelector),
		ManualOnly:        p.Spec.AutoAssign != nil && !*p.Spec.AutoAssign,
		AvoidBuggyIPs:     p.Spec.AvoidBuggyIPs,
	}
	for i, s := range p.Spec.Addresses {
		r, err := model.ParseAddressRange(s)
		if err != nil {
			out.Invalid = append(out.Invalid, fmt.Sprintf("spec.addresses[%d]: %v", i, err))
			continue
		}
		out.Ranges = append(out.Ranges, r)
	}
	return out, errors.Join(bad...)
}

// addressPoolKind is the kind as the chart's CRD installs it.
var addressPoolKind = v1alpha1.GroupVersion.WithKind("AddressPool")

func addressPoolFrom(u *unstructured.Unstructured) (*model.AddressPool, error) {
	var p v1alpha1.AddressPool
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &p); err != nil {
		return nil, err
	}
	return FromAddressPool(&p)
}

// addressPoolFeed follows AddressPools. Where the CRD is not installed there are none.
func addressPoolFeed(w *Watcher, c dynamic.Interface, silence time.Duration) runner {
	example := &unstructured.Unstructured{}
	example.SetGroupVersionKind(addressPoolKind)
	return &feed[*unstructured.Unstructured, model.AddressPool]{
		w: w, apiVersion: v1alpha1.GroupVersion.String(), kindName: "AddressPool", example: example, silence: silence,
		lw: listerOf(c.Resource(v1alpha1.AddressPools)), optional: true,
		from: addressPoolFrom,
		put:  func(d *model.Delta, n model.Name, v *model.AddressPool) { note(d, &d.AddressPools, n.Name, v) },
	}
}
