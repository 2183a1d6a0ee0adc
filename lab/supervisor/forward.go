// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/weft-net/weft/lab/control"
	"github.com/weft-net/weft/lab/forward"
)

// ForwardArgs are the arguments of OpForward.
type ForwardArgs struct {
	Target netip.AddrPort
	Port   uint16 // of the host's 127.0.0.1; 0 picks one that is free
	UDP    bool
	From   string // the host of the lab that connects to the target; "": one that reaches it
}

// forward listens on the host's loopback until the client leaves.
func (l *lab) forward(reply *control.Reply, args ForwardArgs) error {
	from := args.From
	if from == "" {
		from = l.vantage(args.Target.Addr())
	}
	ns, err := l.netOf(from)
	if err != nil {
		return err
	}
	listen := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), args.Port)
	var at net.Addr
	if args.UDP {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(listen))
		if err != nil {
			return err
		}
		defer conn.Close()
		at = conn.LocalAddr()
		go forward.ServeUDP(conn, forward.In(ns), args.Target.String())
	} else {
		listener, err := net.Listen("tcp", listen.String())
		if err != nil {
			return err
		}
		defer listener.Close()
		at = listener.Addr()
		go forward.ServeTCP(listener, forward.In(ns), args.Target.String())
	}
	reply.Progress(fmt.Sprintf("%s on this machine is %s as %s sees it", at, args.Target, from))
	for range reply.Signals() { // until the client is gone
	}
	return nil
}

// vantage is a host that reaches the address: pods and Services are reached from nodes, all else from outside.
func (l *lab) vantage(addr netip.Addr) string {
	for _, r := range append(l.plan.PodRanges(), l.plan.ServiceRanges()...) {
		if !r.Contains(addr) {
			continue
		}
		for _, n := range l.allNodes() {
			n.mu.Lock()
			up := n.running() && !n.partitioned
			n.mu.Unlock()
			if up {
				return n.Name
			}
		}
	}
	return Outside
}
