// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/weft-net/weft/lab/outside"
	"github.com/weft-net/weft/lab/topology"
)

// pullPort is the port on `outside` of the proxy through which images are pulled.
const pullPort = 3128

// serveOutside opens what the world beyond the cluster offers: a resolver, and a way to image registries.
func (l *lab) serveOutside() error {
	zone := outside.Zone{
		"internet.example": topology.Addrs(l.plan.Internet()),
		"outside.lab":      topology.Addrs(l.plan.Outside()),
		"control.lab":      topology.Addrs(l.plan.Control()),
	}
	err := l.outside.Do(func() error {
		for _, addr := range topology.Addrs(append(l.plan.Outside(), l.plan.Internet()...)) {
			if err := outside.ServeDNS(addr, zone); err != nil {
				return err
			}
		}
		listener, err := net.Listen("tcp", netip.AddrPortFrom(l.plan.Outside()[0].Addr(), pullPort).String())
		if err != nil {
			return err
		}
		go outside.ServeProxy(listener, (&net.Dialer{}).DialContext, l.pullPassword)
		return nil
	})
	if err != nil {
		return fmt.Errorf("services of outside: %w", err)
	}
	return os.WriteFile(l.files.resolv(), l.cluster.Resolv(), 0o644)
}

// criEnv sends the CRI servers' image pulls through the proxy on `outside`: nodes have no other way out of the lab.
func (l *lab) criEnv() []string {
	proxy := fmt.Sprintf("http://pull:%s@%s", l.pullPassword, netip.AddrPortFrom(l.plan.Outside()[0].Addr(), pullPort))
	var direct []string
	for segment := range l.plan.Segments {
		for _, p := range l.plan.Router(segment) {
			direct = append(direct, p.Masked().String())
		}
	}
	for _, p := range append(l.plan.PodRanges(), l.plan.ServiceRanges()...) {
		direct = append(direct, p.String())
	}
	return []string{"HTTP_PROXY=" + proxy, "HTTPS_PROXY=" + proxy, "NO_PROXY=" + strings.Join(direct, ","), "GOGC=50"}
}
