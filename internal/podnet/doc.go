// SPDX-License-Identifier: Apache-2.0

// Package podnet is the pod network: it carries out CNI requests (links, addresses, host ports), keeps the routes
// to the other nodes' pods, directly where two nodes share a link and through VXLAN where they don't, and hides
// pods behind their node's address towards the world beyond the cluster.
//
// # What a pod gets
//
// One veth, and no bridge: everything is routed, so that what the node's routing table says is all there is to
// know. The pod's end is its eth0 with a /32 and/or /128 address and a default route to 169.254.1.1 and fe80::1.
// The node's end is named "weft" and eleven hexadecimal digits of a hash of (container id, interface name), which
// is how DEL finds it with no memory at all; its alias is the pod's namespace/name. Both ends have permanent
// neighbour entries, so no ARP or NDP ever runs on a pod's link. A pod can only send from its own addresses.
//
// # What the node has
//
//	routes of protocol 119 in table main   a /32 or /128 for each pod, "unreachable" for the rest of the node's
//	                                       own podCIDRs, a route for each podCIDR of every other node
//	vxlan-weft4, vxlan-weft6               only while some node is not on a shared link; static neighbours and
//	                                       forwarding entries, nothing is learned
//	table inet weft-podnet                 see table.go
//	/run/weft/podnet                       a file for each pod (see store.go), the address ranges' state
//	/run/weft/cni.sock, /run/weft/deleted  the CNI plugin's way in
//
// Nothing else of the node is touched but the switches without which no packet is forwarded (see sysctl.go).
//
// # Crashes
//
// The record of a pod is written before anything is made for it and removed after everything is gone, each by an
// atomic rename, and says whether its wiring was completed. So after kill -9 at any point, Open finds: a complete
// record, whose kernel objects it verifies and repairs; an incomplete one, which it undoes (its ADD never answered,
// and the plugin asks again); or nothing. The folder is on a tmpfs, as sandboxes do not survive a boot either; a
// record of another boot counts as nothing.
//
// It imports model, its own plugin package, and the netlink and CNI libraries; no other room.
package podnet
