// SPDX-License-Identifier: Apache-2.0

// Package forward carries connections and datagrams between network namespaces in user space, so that the host
// reaches into a lab, and no link, route or rule joins the two.
//
// It imports namespace and the standard library.
package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/weft-net/weft/lab/namespace"
)

// dialTimeout bounds a connection's set-up in the lab.
const dialTimeout = 10 * time.Second

// Dialer makes connections somewhere.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// In dials from inside a network namespace. Addresses must be numeric.
func In(ns *namespace.Net) Dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		var conn net.Conn
		err := ns.Do(func() error {
			// One numeric address: the dialer makes its socket on the calling thread, which is inside.
			if _, err := netip.ParseAddrPort(address); err != nil {
				return err
			}
			d := net.Dialer{Timeout: dialTimeout}
			var err error
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// ServeTCP carries each connection of the listener to the target, until the listener is closed.
func ServeTCP(l net.Listener, dial Dialer, target string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors: some will be given back
			continue
		}
		go func() {
			defer conn.Close()
			ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
			defer cancel()
			far, err := dial(ctx, "tcp", target)
			if err != nil {
				return
			}
			defer far.Close()
			Join(conn, far)
		}()
	}
}

// Join copies both ways until both directions have ended, and passes each one's end on.
func Join(a, b net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { copyAndClose(a, b) })
	wg.Go(func() { copyAndClose(b, a) })
	wg.Wait()
}

func copyAndClose(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		half.CloseWrite()
		return
	}
	to.Close()
	from.Close()
}
