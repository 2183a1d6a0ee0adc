// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Elem is an element as the kernel holds it. Its slices are valid until the callback that got it returns.
type Elem struct {
	Key     []byte
	KeyEnd  []byte // the last key of a range over several components
	End     bool   // marks the end of a range of one component
	Data    []byte
	To      Target // of a verdict map
	Comment string
	Timeout time.Duration // where it is not the set's
	Expires time.Duration // how long it has left; 0 is forever
}

// SetInfo is what the kernel says a set is.
type SetInfo struct {
	Name    string
	Flags   SetFlags
	KeyLen  int
	DataLen int
	KeyType uint32
	Size    uint32 // the most elements; 0 is unlimited
}

// Is tells whether the kernel's set is what s describes, so that it can be kept.
func (i SetInfo) Is(s *Set) bool {
	return i.Name == s.Name && uint32(i.Flags) == s.flags() && i.KeyLen == s.Key.Len() && (s.Data.verdict() || i.DataLen == s.Data.Len()) && i.KeyType == s.Key.id()
}

// Generation is a number that each transaction in the network namespace, anybody's, makes one higher.
func (c *Conn) Generation() (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.drain(nil); err != nil {
		return 0, err
	}
	if err := c.send(endMessage(appendMessage(nil, unix.NFT_MSG_GETGEN, 0, 0), 0)); err != nil {
		return 0, err
	}
	var id uint32
	err := c.drain(func(m message) {
		if msg, ok := m.nft(); ok && msg == unix.NFT_MSG_NEWGEN {
			eachAttr(m.attrs(), func(typ uint16, data []byte) {
				if typ == unix.NFTA_GEN_ID {
					id = be32(data)
				}
			})
		}
	})
	if err == nil && id == 0 {
		err = fmt.Errorf("nftables: generation: %w", ErrUnconfirmed)
	}
	return id, err
}

// TableInfo is what the kernel says a table is.
type TableInfo struct {
	Name    string
	Ownable bool   // made by OwnTable
	Owner   uint32 // the Port of the Conn that owns it; 0 is none
}

// TableInfos lists a family's tables.
func (c *Conn) TableInfos(f Family) ([]TableInfo, error) {
	var out []TableInfo
	err := c.dump(unix.NFT_MSG_GETTABLE, f, nil, func(m message) {
		var t TableInfo
		eachAttr(m.attrs(), func(typ uint16, data []byte) {
			switch typ {
			case unix.NFTA_TABLE_NAME:
				t.Name = cString(data)
			case unix.NFTA_TABLE_FLAGS:
				t.Ownable = be32(data)&tablePersist != 0
			case tableOwnerPort:
				t.Owner = be32(data)
			}
		})
		if t.Name != "" {
			out = append(out, t)
		}
	})
	return out, err
}

// Tables lists the names of a family's tables.
func (c *Conn) Tables(f Family) ([]string, error) {
	infos, err := c.TableInfos(f)
	var out []string
	for _, t := range infos {
		out = append(out, t.Name)
	}
	return out, err
}

// CanOwn tells whether the kernel has tables that have an owner and outlive it (Linux 6.9). To find out takes a
// transaction, which leaves nothing behind.
func (c *Conn) CanOwn() (bool, error) {
	probe := Table{IPv4, "weft-probe"}
	var b Batch
	b.OwnTable(probe, "")
	b.DeleteTable(probe)
	err := c.Commit(&b)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	return err == nil, err
}

// Chains lists the names of a table's chains.
func (c *Conn) Chains(t Table) ([]string, error) {
	var out []string
	err := c.dump(unix.NFT_MSG_GETCHAIN, t.Family, nil, func(m message) {
		var table, name string
		eachAttr(m.attrs(), func(typ uint16, data []byte) {
			switch typ {
			case unix.NFTA_CHAIN_TABLE:
				table = cString(data)
			case unix.NFTA_CHAIN_NAME:
				name = cString(data)
			}
		})
		if table == t.Name {
			out = append(out, name)
		}
	})
	return out, err
}

// Sets lists a table's named sets and maps.
func (c *Conn) Sets(t Table) ([]SetInfo, error) {
	var out []SetInfo
	req := appendString(nil, unix.NFTA_SET_TABLE, t.Name)
	err := c.dump(unix.NFT_MSG_GETSET, t.Family, req, func(m message) {
		var s SetInfo
		eachAttr(m.attrs(), func(typ uint16, data []byte) {
			switch typ {
			case unix.NFTA_SET_NAME:
				s.Name = cString(data)
			case unix.NFTA_SET_FLAGS:
				s.Flags = SetFlags(be32(data))
			case unix.NFTA_SET_KEY_TYPE:
				s.KeyType = be32(data)
			case unix.NFTA_SET_KEY_LEN:
				s.KeyLen = int(be32(data))
			case unix.NFTA_SET_DATA_LEN:
				s.DataLen = int(be32(data))
			case unix.NFTA_SET_DESC:
				eachAttr(data, func(typ uint16, data []byte) {
					if typ == unix.NFTA_SET_DESC_SIZE {
						s.Size = be32(data)
					}
				})
			}
		})
		out = append(out, s)
	})
	return out, err
}

// Elements calls f with each element of a set. Some time after a set has grown the kernel puts it into another order; an
// answer of several parts then has some elements twice, and for each of them lacks another. That is the caller's to see:
// who gets one twice has to ask again.
func (c *Conn) Elements(s *Set, f func(Elem)) error {
	req := appendString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
	req = appendString(req, unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	return c.dump(unix.NFT_MSG_GETSETELEM, s.Table.Family, req, func(m message) {
		eachAttr(m.attrs(), func(typ uint16, list []byte) {
			if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				return
			}
			eachAttr(list, func(_ uint16, elem []byte) { f(decodeElem(elem)) })
		})
	})
}

func decodeElem(b []byte) Elem {
	var e Elem
	eachAttr(b, func(typ uint16, data []byte) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			e.Key, _ = decodeData(data)
		case setElemKeyEnd:
			e.KeyEnd, _ = decodeData(data)
		case unix.NFTA_SET_ELEM_DATA:
			e.Data, e.To = decodeData(data)
		case unix.NFTA_SET_ELEM_FLAGS:
			e.End = be32(data)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_USERDATA:
			e.Comment = userComment(data, udataElemComment)
		case unix.NFTA_SET_ELEM_TIMEOUT:
			e.Timeout = milliseconds(data)
		case unix.NFTA_SET_ELEM_EXPIRATION:
			e.Expires = milliseconds(data)
		}
	})
	return e
}

func decodeData(b []byte) (value []byte, to Target) {
	eachAttr(b, func(typ uint16, data []byte) {
		switch typ {
		case unix.NFTA_DATA_VALUE:
			value = data
		case unix.NFTA_DATA_VERDICT:
			eachAttr(data, func(typ uint16, data []byte) {
				switch typ {
				case unix.NFTA_VERDICT_CODE:
					to.Code = int32(be32(data))
				case unix.NFTA_VERDICT_CHAIN:
					to.Chain = cString(data)
				}
			})
		}
	})
	return value, to
}

func milliseconds(b []byte) time.Duration {
	if len(b) != 8 {
		return 0
	}
	return time.Duration(binary.BigEndian.Uint64(b)) * time.Millisecond
}

func be32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// dump asks for all objects of a kind. What does not exist is an error of unix.ENOENT, or nothing at all.
func (c *Conn) dump(msg uint16, f Family, attrs []byte, each func(message)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.drain(nil); err != nil {
		return err
	}
	req := endMessage(append(appendMessage(nil, msg, unix.NLM_F_DUMP, f), attrs...), 0)
	if err := c.send(req); err != nil {
		return err
	}
	for done := false; !done; {
		n, _, err := unix.Recvfrom(c.fd, c.in, 0)
		switch err {
		case nil:
		case unix.EINTR:
			continue
		default:
			return fmt.Errorf("nftables: dump: %w", err)
		}
		var bad error
		eachMessage(c.in[:n], func(m message) {
			if m.flags&unix.NLM_F_DUMP_INTR != 0 {
				bad = ErrInterrupted
			}
			switch m.typ {
			case unix.NLMSG_DONE:
				done = true
			case unix.NLMSG_ERROR:
				if errno, ok := m.errno(); ok && errno != 0 {
					bad = fmt.Errorf("nftables: dump: %w", errno)
				}
				done = true
			default:
				each(m)
			}
		})
		if bad != nil {
			if done {
				return bad
			}
			return c.abandon(bad)
		}
	}
	return nil
}

// abandon reads a dump to its end without looking, so that the socket is clean for what comes next.
func (c *Conn) abandon(reason error) error {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.in, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("nftables: dump: %w", err)
		}
		done := false
		eachMessage(c.in[:n], func(m message) { done = done || m.typ == unix.NLMSG_DONE || m.typ == unix.NLMSG_ERROR })
		if done {
			return reason
		}
	}
}
