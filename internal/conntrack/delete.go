// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"
)

// key is what a connection is asked for by. A client that uses a port again has a new connection with the addresses and
// ports of the old one, as the client sees them; it goes to another endpoint, though. So answers' addresses are what it
// goes by. The kernel's ID is not enough: it is made of the first packet's addresses and where in memory the connection
// is kept, which as often as not is where the old one was.
type key struct {
	tuple conntrack.Tuple // of answers
	zone  uint16
	id    uint32
}

// Messages and attributes of linux/netfilter/nfnetlink_conntrack.h. The library sends the first packet's addresses if it
// has them, and never the ID.
const (
	msgDelete = 2 // IPCTNL_MSG_CT_DELETE

	ctaTupleReply = 2
	ctaID         = 12
	ctaZone       = 18

	ctaTupleIP, ctaTupleProto = 1, 2

	ctaIPv4Src, ctaIPv4Dst = 1, 2
	ctaIPv6Src, ctaIPv6Dst = 3, 4

	ctaProtoNum                                        = 1
	ctaProtoSrcPort, ctaProtoDstPort                   = 2, 3
	ctaProtoICMPID, ctaProtoICMPType, ctaProtoICMPCode = 4, 5, 6
	ctaICMPv6                                          = 3 // what the three of ICMPv6 are further on
)

// Delete ends connections that Flows has read, and returns how many. One that has ended by itself meanwhile does not count
// and is no error; what took its place and goes elsewhere stays.
func (t *Table) Delete(flows []Flow) (int, error) {
	n := 0
	var errs []error
	for i := range flows {
		f := &flows[i]
		switch err := t.delete(&f.key); {
		case err == nil:
			n++
		case !errors.Is(err, unix.ENOENT):
			errs = append(errs, fmt.Errorf("conntrack: delete %s %s -> %s: %w", f.Protocol, f.Source, f.Dest, err))
		}
	}
	return n, errors.Join(errs...)
}

func (t *Table) delete(k *key) error {
	header := netfilter.Header{SubsystemID: netfilter.NFSubsysCTNetlink, MessageType: msgDelete, Family: netfilter.ProtoIPv4,
		Flags: netlink.Request | netlink.Acknowledge}
	if k.tuple.IP.SourceAddress.Is6() {
		header.Family = netfilter.ProtoIPv6
	}
	e := netfilter.NewAttributeEncoder()
	k.encode(e)
	m, err := netfilter.EncodeNetlink(header, e)
	if err == nil {
		_, err = t.conn.Query(m)
	}
	return err
}

func (k *key) encode(e *netlink.AttributeEncoder) {
	e.Nested(ctaTupleReply, func(e *netlink.AttributeEncoder) error {
		e.Nested(ctaTupleIP, k.encodeIP)
		e.Nested(ctaTupleProto, k.encodeProto)
		return nil
	})
	if k.zone != 0 {
		e.Uint16(ctaZone, k.zone)
	}
	e.Uint32(ctaID, k.id)
}

func (k *key) encodeIP(e *netlink.AttributeEncoder) error {
	src, dst := k.tuple.IP.SourceAddress, k.tuple.IP.DestinationAddress
	if src.Is4() {
		e.Bytes(ctaIPv4Src, src.AsSlice())
		e.Bytes(ctaIPv4Dst, dst.AsSlice())
	} else {
		e.Bytes(ctaIPv6Src, src.AsSlice())
		e.Bytes(ctaIPv6Dst, dst.AsSlice())
	}
	return nil
}

func (k *key) encodeProto(e *netlink.AttributeEncoder) error {
	p := &k.tuple.Proto
	e.Uint8(ctaProtoNum, p.Protocol)
	further := uint16(0)
	switch p.Protocol {
	case unix.IPPROTO_ICMPV6:
		further = ctaICMPv6
		fallthrough
	case unix.IPPROTO_ICMP:
		e.Uint16(ctaProtoICMPID+further, p.ICMPID)
		e.Uint8(ctaProtoICMPType+further, p.ICMPType)
		e.Uint8(ctaProtoICMPCode+further, p.ICMPCode)
	default:
		e.Uint16(ctaProtoSrcPort, p.SourcePort)
		e.Uint16(ctaProtoDstPort, p.DestinationPort)
	}
	return nil
}
