// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/podnet/plugin"
)

// hostPort is a port of the node that leads to a pod.
type hostPort struct {
	HostIP        netip.Addr     `json:"hostIP"` // invalid: every address of the node, both families; 0.0.0.0 and ::, of one
	Protocol      model.Protocol `json:"protocol"`
	HostPort      uint16         `json:"hostPort"`
	ContainerPort uint16         `json:"containerPort"`
}

func (p hostPort) String() string {
	if p.HostIP.IsValid() {
		return fmt.Sprintf("%s %s", p.Protocol, netip.AddrPortFrom(p.HostIP, p.HostPort))
	}
	return fmt.Sprintf("%s %d", p.Protocol, p.HostPort)
}

// family tells whether the port is open for addresses of a family.
func (p hostPort) open(f model.Family) bool {
	return !p.HostIP.IsValid() || model.FamilyOf(p.HostIP) == f
}

// clashes tells whether no node can have both.
func (p hostPort) clashes(o hostPort) bool {
	if p.Protocol != o.Protocol || p.HostPort != o.HostPort {
		return false
	}
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		if p.open(f) && o.open(f) {
			wild := func(p hostPort) bool { return !p.HostIP.IsValid() || p.HostIP.IsUnspecified() }
			return wild(p) || wild(o) || p.HostIP == o.HostIP
		}
	}
	return false
}

// parseHostPorts reads the capability portMappings. Entries without a host port are the runtime's way to list
// container ports and mean nothing.
func parseHostPorts(ms []plugin.PortMapping) ([]hostPort, error) {
	var ps []hostPort
	for i, m := range ms {
		if m.HostPort == 0 {
			continue
		}
		where := fmt.Sprintf("runtimeConfig.portMappings[%d]", i)
		if m.HostPort < 0 || m.HostPort > 65535 {
			return nil, plugin.Errorf(plugin.CodeInvalidConfig, "%s: hostPort %d: want 1 to 65535", where, m.HostPort)
		}
		if m.ContainerPort < 1 || m.ContainerPort > 65535 {
			return nil, plugin.Errorf(plugin.CodeInvalidConfig, "%s: containerPort %d: want 1 to 65535", where, m.ContainerPort)
		}
		proto, err := model.ParseProtocol(m.Protocol)
		if err != nil {
			return nil, plugin.Errorf(plugin.CodeInvalidConfig, "%s: %v", where, err)
		}
		p := hostPort{Protocol: proto, HostPort: uint16(m.HostPort), ContainerPort: uint16(m.ContainerPort)}
		if m.HostIP != "" {
			if p.HostIP, err = netip.ParseAddr(m.HostIP); err != nil || p.HostIP.Zone() != "" {
				return nil, plugin.Errorf(plugin.CodeInvalidConfig, "%s: hostIP %q: want an IP address", where, m.HostIP)
			}
			p.HostIP = p.HostIP.Unmap()
		}
		for _, o := range ps {
			if p.clashes(o) && p != o {
				return nil, plugin.Errorf(plugin.CodeInvalidConfig, "%s: host port %s is mapped twice", where, p)
			}
		}
		ps = append(ps, p)
	}
	return ps, nil
}

// portElement is an element of one of the table's sets or maps.
type portElement struct{ set, key, value string }

// portElements are the elements that a pod's host ports need.
func portElements(r *record) []portElement {
	var es []portElement
	for _, ip := range r.IPs {
		suffix := "4"
		if ip.Is6() {
			suffix = "6"
		}
		any := false
		for _, p := range r.HostPorts {
			if !p.open(model.FamilyOf(ip)) {
				continue
			}
			any = true
			// Each component of a key or value fills whole 4-byte registers.
			e := portElement{set: "host-ports" + suffix, key: registers([]byte{byte(p.Protocol)}, port(p.HostPort))}
			if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
				e = portElement{set: "host-ip-ports" + suffix, key: registers(p.HostIP.AsSlice()) + e.key}
			}
			e.value = registers(ip.AsSlice(), port(p.ContainerPort))
			es = append(es, e)
		}
		if any {
			es = append(es, portElement{set: "hairpin" + suffix, key: registers(ip.AsSlice(), ip.AsSlice())})
		}
	}
	return es
}

func port(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }

func registers(parts ...[]byte) string {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return string(b)
}

// forgetFlows removes conntrack's UDP flows to the host ports: a client that keeps sending would otherwise reach the
// pod that had the port before, or none, for as long as it does not pause.
func (n *Network) forgetFlows(ps []hostPort) error {
	for _, p := range ps {
		if p.Protocol != model.UDP {
			continue
		}
		for _, f := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			filter := &netlink.ConntrackFilter{}
			if err := filter.AddProtocol(uint8(model.UDP)); err != nil {
				return err
			}
			if err := filter.AddPort(netlink.ConntrackOrigDstPort, p.HostPort); err != nil {
				return err
			}
			if _, err := n.nl.ConntrackDeleteFilters(netlink.ConntrackTable, f, toNode{filter, p}); err != nil {
				return fmt.Errorf("forget UDP flows to host port %s: %w", p, err)
			}
		}
	}
	return nil
}

// toNode narrows a filter to flows that a host port translated, or would: those to the port's own address, and
// those whose answers come from elsewhere than they went to or that have no answer yet.
type toNode struct {
	*netlink.ConntrackFilter
	p hostPort
}

// MatchConntrackFlow is netlink.CustomConntrackFilter.
func (t toNode) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if !t.ConntrackFilter.MatchConntrackFlow(flow) {
		return false
	}
	dst, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	return !t.p.HostIP.IsValid() || t.p.HostIP.IsUnspecified() || dst.Unmap() == t.p.HostIP
}
