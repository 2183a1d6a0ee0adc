// SPDX-License-Identifier: Apache-2.0

package model

import "time"

// Delta is what changed since the Delta before it, coalesced to one entry an object: the newest value, or nil
// when the object is gone. Kinds that the watcher was not asked for stay empty.
type Delta struct {
	// Complete says that every watched kind had delivered its first full list when this Delta was cut. Until
	// then absence means nothing: nobody may delete, or answer "no such name", on the ground of it.
	Complete bool

	// Since is when the oldest change in here reached this process.
	Since time.Time

	Services        map[Name]*Service
	EndpointSlices  map[Name]*EndpointSlice
	Pods            map[Name]*Pod
	Nodes           map[string]*Node
	Namespaces      map[string]*Namespace
	NetworkPolicies map[Name]*NetworkPolicy

	ClusterNetworkPolicies map[string]*ClusterNetworkPolicy
}
