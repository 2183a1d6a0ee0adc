// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func clone[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// DeepCopy returns a copy that shares nothing with p.
func (p *AddressPool) DeepCopy() *AddressPool {
	if p == nil {
		return nil
	}
	out := &AddressPool{TypeMeta: p.TypeMeta, Spec: *p.Spec.DeepCopy(), Status: *p.Status.DeepCopy()}
	p.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return out
}

// DeepCopyObject implements runtime.Object.
func (p *AddressPool) DeepCopyObject() runtime.Object {
	if p == nil {
		return nil
	}
	return p.DeepCopy()
}

// DeepCopy returns a copy that shares nothing with s.
func (s *AddressPoolSpec) DeepCopy() *AddressPoolSpec {
	if s == nil {
		return nil
	}
	out := *s
	out.Addresses = slices.Clone(s.Addresses)
	out.NamespaceSelector = s.NamespaceSelector.DeepCopy()
	out.ServiceSelector = s.ServiceSelector.DeepCopy()
	out.AutoAssign = clone(s.AutoAssign)
	return &out
}

// DeepCopy returns a copy that shares nothing with s.
func (s *AddressPoolStatus) DeepCopy() *AddressPoolStatus {
	if s == nil {
		return nil
	}
	out := *s
	out.IPv4, out.IPv6 = clone(s.IPv4), clone(s.IPv6)
	if s.Conditions != nil {
		out.Conditions = make([]metav1.Condition, len(s.Conditions))
		for i := range s.Conditions {
			s.Conditions[i].DeepCopyInto(&out.Conditions[i])
		}
	}
	return &out
}

// DeepCopy returns a copy that shares nothing with l.
func (l *AddressPoolList) DeepCopy() *AddressPoolList {
	if l == nil {
		return nil
	}
	out := &AddressPoolList{TypeMeta: l.TypeMeta}
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	if l.Items != nil {
		out.Items = make([]AddressPool, len(l.Items))
		for i := range l.Items {
			out.Items[i] = *l.Items[i].DeepCopy()
		}
	}
	return out
}

// DeepCopyObject implements runtime.Object.
func (l *AddressPoolList) DeepCopyObject() runtime.Object {
	if l == nil {
		return nil
	}
	return l.DeepCopy()
}
