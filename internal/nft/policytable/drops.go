// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/florianl/go-nflog/v2"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
)

// Packet is a packet that the table logged.
type Packet struct {
	Time             time.Time
	Prefix           string // the name of the chain that dropped it, or one of the Prefix constants
	Src, Dst         netip.Addr
	Protocol         model.Protocol
	SrcPort, DstPort uint16 // 0 where the protocol has none

	// Asked is where the client had sent it, before the address of a Service was replaced; not valid where the kernel
	// does not say.
	Asked netip.AddrPort
}

// Listen calls f with each packet that the table logs until ctx is done; then the error is nil. The kernel gives a
// group to one listener at a time.
func (t *Table) Listen(ctx context.Context, f func(Packet)) error {
	return t.hear(ctx, t.group, snapLength, nflog.FlagConntrack, func(a *nflog.Attribute) {
		if a.Payload == nil || a.Prefix == nil {
			return
		}
		p, ok := parse(*a.Payload)
		if !ok {
			return
		}
		p.Prefix, p.Time = *a.Prefix, time.Now()
		if a.Timestamp != nil {
			p.Time = *a.Timestamp
		}
		if a.Ct != nil {
			p.Asked = askedFor(*a.Ct)
		}
		f(p)
	})
}

// askedFor is the destination of a tracked connection's original direction, as conntrack's netlink family spells it.
func askedFor(ct []byte) netip.AddrPort {
	var addr netip.Addr
	var port uint16
	nft.EachAttr(ct, func(typ uint16, tuple []byte) {
		if typ != ctaTupleOrig {
			return
		}
		nft.EachAttr(tuple, func(part uint16, fields []byte) {
			nft.EachAttr(fields, func(field uint16, v []byte) {
				switch {
				case part == ctaTupleIP && (field == ctaIPv4Dst || field == ctaIPv6Dst):
					addr, _ = netip.AddrFromSlice(v)
				case part == ctaTupleProto && field == ctaProtoDstPort && len(v) == 2:
					port = binary.BigEndian.Uint16(v)
				}
			})
		})
	})
	return netip.AddrPortFrom(addr.Unmap(), port)
}

// Attributes of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctaTupleOrig    = 1
	ctaTupleIP      = 1
	ctaTupleProto   = 2
	ctaIPv4Dst      = 2
	ctaIPv6Dst      = 4
	ctaProtoDstPort = 3
)

// hear calls f with each packet that is logged to a group, up to so many bytes of it, until ctx is done. Flags that
// the kernel does not know are left out.
func (t *Table) hear(ctx context.Context, group uint16, length uint32, flags uint16, f func(*nflog.Attribute)) error {
	end := &ending{ended: make(chan struct{})}
	n, err := nflog.Open(&nflog.Config{
		NetNS: max(t.netns, 0), Group: group, Copymode: nflog.CopyPacket, Bufsize: length, Flags: flags,
		QThresh: 1, // each packet at once: there are few
		Logger:  end,
	})
	if err != nil {
		return fmt.Errorf("listen to netlink log group %d: %w", group, err)
	}
	defer n.Close()
	failed := make(chan error, 1)
	all := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err = n.RegisterWithErrorFunc(ctx, func(a nflog.Attribute) int {
		f(&a)
		return 0
	}, func(err error) int {
		if ctx.Err() == nil && errors.Is(err, unix.ENOBUFS) {
			return 0 // packets were lost: there were more than anybody could read
		}
		defer end.tell()
		if ctx.Err() != nil {
			return 1
		}
		select {
		case failed <- err:
		default:
		}
		return 1
	})
	if flags != 0 && errors.Is(err, unix.EOPNOTSUPP) {
		_ = n.Close() // the group has room for one
		return t.hear(all, group, length, 0, f)
	}
	if err != nil {
		return fmt.Errorf("listen to netlink log group %d: %w", group, err)
	}
	defer func() {
		cancel()
		<-end.ended
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("listen to netlink log group %d: %w", group, err)
	}
}

// ending tells when package nflog's reader has come to its end. Only then may the listener be closed: before, the reader
// may have yet to add itself to the WaitGroup that Close waits for, a data race. The end comes with an error that the
// reader hands over, or with one that it logs, which it does for no other reason.
type ending struct {
	once  sync.Once
	ended chan struct{}
}

func (e *ending) tell() { e.once.Do(func() { close(e.ended) }) }

// Debugf and Errorf implement nflog.Logger.
func (e *ending) Debugf(string, ...any) {}
func (e *ending) Errorf(string, ...any) { e.tell() }

// parse reads the headers of an IP packet, which may be cut off behind them.
func parse(b []byte) (p Packet, ok bool) {
	if len(b) < 20 {
		return p, false
	}
	var rest []byte
	switch b[0] >> 4 {
	case 4:
		n := int(b[0]&15) * 4
		if n < 20 || n > len(b) {
			return p, false
		}
		p.Src, p.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		p.Protocol, rest = model.Protocol(b[9]), b[n:]
	case 6:
		if len(b) < 40 {
			return p, false
		}
		p.Src, p.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		p.Protocol, rest = model.Protocol(b[6]), b[40:]
		// Extension headers (RFC 8200, section 4): a next header and a length in 8 bytes beyond the first 8.
		for isExtension(p.Protocol) && len(rest) >= 8 {
			n := 8 + 8*int(rest[1])
			if p.Protocol == unix.IPPROTO_FRAGMENT {
				n = 8
			}
			if n > len(rest) {
				return p, true
			}
			p.Protocol, rest = model.Protocol(rest[0]), rest[n:]
		}
	default:
		return p, false
	}
	switch p.Protocol {
	case model.TCP, model.UDP, model.SCTP:
		if len(rest) >= 4 {
			p.SrcPort, p.DstPort = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
		}
	}
	return p, true
}

func isExtension(p model.Protocol) bool {
	switch p {
	case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_FRAGMENT, unix.IPPROTO_DSTOPTS:
		return true
	}
	return false
}

// DropCounts reads how many packets each chain has dropped since its rules were made.
func (t *Table) DropCounts() (map[string]uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ofTable nft.Attrs
	ofTable.String(unix.NFTA_RULE_TABLE, t.name)
	out := map[string]uint64{}
	err := t.conn.Dump(unix.NFT_MSG_GETRULE, nft.Inet, ofTable, func(b []byte) {
		var chain string
		nft.EachAttr(b, func(typ uint16, data []byte) {
			switch typ {
			case unix.NFTA_RULE_CHAIN:
				chain = nft.CString(data)
			case unix.NFTA_RULE_EXPRESSIONS:
				nft.EachAttr(data, func(_ uint16, expr []byte) {
					if n, ok := counterOf(expr); ok {
						out[chain] += n
					}
				})
			}
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read the counters of table inet %s: %w", t.name, err)
	}
	return out, nil
}

// counterOf is the packets that a counter expression has counted.
func counterOf(expr []byte) (packets uint64, ok bool) {
	nft.EachAttr(expr, func(typ uint16, data []byte) {
		switch typ {
		case unix.NFTA_EXPR_NAME:
			ok = nft.CString(data) == "counter"
		case unix.NFTA_EXPR_DATA:
			nft.EachAttr(data, func(typ uint16, v []byte) {
				if ok && typ == unix.NFTA_COUNTER_PACKETS && len(v) == 8 {
					packets = binary.BigEndian.Uint64(v)
				}
			})
		}
	})
	return packets, ok
}
