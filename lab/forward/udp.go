// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// udpIdle is how long a UDP client may be silent before what it was connected to is forgotten.
const udpIdle = time.Minute

// ServeUDP carries each client's datagrams to the target and the answers back, until conn is closed.
func ServeUDP(conn *net.UDPConn, dial Dialer, target string) {
	var mu sync.Mutex
	far := map[netip.AddrPort]net.Conn{}
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range far {
			c.Close()
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, client, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		mu.Lock()
		to := far[client]
		mu.Unlock()
		if to == nil {
			if to, err = dial(context.Background(), "udp", target); err != nil {
				continue
			}
			mu.Lock()
			far[client] = to
			mu.Unlock()
			go func() {
				answerUDP(conn, client, to)
				mu.Lock()
				delete(far, client)
				mu.Unlock()
			}()
		}
		to.Write(buf[:n]) // a datagram may be lost
	}
}

// answerUDP carries answers back until there are none for a while.
func answerUDP(conn *net.UDPConn, client netip.AddrPort, from net.Conn) {
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		if err := from.SetReadDeadline(time.Now().Add(udpIdle)); err != nil {
			return
		}
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if _, err := conn.WriteToUDPAddrPort(buf[:n], client); err != nil {
			return
		}
	}
}
