// SPDX-License-Identifier: Apache-2.0

package model

import "net/netip"

// LocalPod is a pod that this node has wired: one sandbox with its link and addresses. It comes from the CNI
// request, often before the API's watch tells the pod's addresses.
type LocalPod struct {
	Name
	UID       string // "" where the runtime does not say
	Sandbox   string // CNI_CONTAINERID
	Link      string // the name of the node's end of its veth; node-wide unique
	LinkIndex int
	IPs       []netip.Addr // in the order of the node's podCIDRs, at most one of each family
}
