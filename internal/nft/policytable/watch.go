// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Watch calls changed whenever somebody else has changed the table, or may have, until ctx is done.
func (t *Table) Watch(ctx context.Context, changed func()) error {
	s, err := dial(t.netns)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES); err != nil {
		s.close()
		return fmt.Errorf("watch nf_tables: %w", err)
	}
	if err := unix.SetNonblock(s.fd, true); err != nil {
		s.close()
		return fmt.Errorf("watch nf_tables: %w", err)
	}
	f := os.NewFile(uintptr(s.fd), "nf_tables events")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	changed() // what happened before the socket was there
	buf := make([]byte, 128<<10)
	for {
		n, err := f.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // events were lost
			changed()
			continue
		case err != nil:
			return fmt.Errorf("watch nf_tables: %w", err)
		}
		foreign := false
		eachMessage(buf[:n], func(typ, _ uint16, _, portID uint32, data []byte) {
			if typ>>8 != unix.NFNL_SUBSYS_NFTABLES || typ&0xff == unix.NFT_MSG_NEWGEN || portID == t.sock.portID || len(data) < 4 {
				return
			}
			// In all of these messages the first attribute is the table's name.
			eachAttr(data[4:], func(attr uint16, value []byte) {
				foreign = foreign || attr == unix.NFTA_TABLE_NAME && cstring(value) == t.name
			})
		})
		if foreign {
			changed()
		}
	}
}
