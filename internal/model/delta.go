// SPDX-License-Identifier: Apache-2.0

package model

import (
	"maps"
	"time"
)

// Delta is what changed since the Delta before it, coalesced to one entry an object: the newest value, or nil
// when the object is gone. Kinds that the watcher was not asked for stay empty.
type Delta struct {
	// Complete says that every watched kind had delivered its first full list when this Delta was cut. Until
	// then absence means nothing: nobody may delete, or answer "no such name", on the ground of it.
	Complete bool

	// Whole says that this is the first Delta that a watcher hands out: all there is, and no word of what is gone.
	Whole bool

	// Since is when the oldest change in here reached this process.
	Since time.Time

	Services        map[Name]*Service
	EndpointSlices  map[Name]*EndpointSlice
	Pods            map[Name]*Pod
	Nodes           map[string]*Node
	Namespaces      map[string]*Namespace
	NetworkPolicies map[Name]*NetworkPolicy

	ClusterNetworkPolicies map[string]*ClusterNetworkPolicy
	AddressPools           map[string]*AddressPool
	ServiceCIDRs           map[string]*ServiceCIDR

	Secrets    map[Name]*Secret
	ConfigMaps map[Name]*ConfigMap

	ClusterTrustBundles map[string]*ClusterTrustBundle

	Ingresses      map[Name]*Ingress
	IngressClasses map[string]*IngressClass

	Objects map[ObjectKey]*Object // of all other kinds
}

// Merge adds what came later to d. An object in both takes the later value.
func (d *Delta) Merge(later *Delta) {
	d.Complete = d.Complete || later.Complete
	if d.Since.IsZero() {
		d.Since = later.Since
	}
	merge(&d.Services, later.Services)
	merge(&d.EndpointSlices, later.EndpointSlices)
	merge(&d.Pods, later.Pods)
	merge(&d.Nodes, later.Nodes)
	merge(&d.Namespaces, later.Namespaces)
	merge(&d.NetworkPolicies, later.NetworkPolicies)
	merge(&d.ClusterNetworkPolicies, later.ClusterNetworkPolicies)
	merge(&d.AddressPools, later.AddressPools)
	merge(&d.ServiceCIDRs, later.ServiceCIDRs)
	merge(&d.Secrets, later.Secrets)
	merge(&d.ConfigMaps, later.ConfigMaps)
	merge(&d.ClusterTrustBundles, later.ClusterTrustBundles)
	merge(&d.Objects, later.Objects)
	merge(&d.Ingresses, later.Ingresses)
	merge(&d.IngressClasses, later.IngressClasses)
}

func merge[K comparable, T any](dst *map[K]*T, src map[K]*T) {
	if *dst == nil {
		*dst = maps.Clone(src)
		return
	}
	maps.Copy(*dst, src)
}
