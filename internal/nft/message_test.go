// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Messages of one's own are a transaction like any other: all or nothing, errors by their objects, read back with Dump.
func TestMessages(t *testing.T) {
	c := dial(t)
	table := func(name string) Message {
		var a Attrs
		a.String(unix.NFTA_TABLE_NAME, name)
		return Message{Type: unix.NFT_MSG_NEWTABLE, Flags: unix.NLM_F_CREATE, Body: a, About: "table " + name}
	}
	chain := func(of, name string) Message {
		var a Attrs
		a.String(unix.NFTA_CHAIN_TABLE, of)
		a.String(unix.NFTA_CHAIN_NAME, name)
		a.Nest(unix.NFTA_CHAIN_HOOK, func(a *Attrs) {
			a.Uint32(unix.NFTA_HOOK_HOOKNUM, unix.NF_INET_LOCAL_IN)
			a.Uint32(unix.NFTA_HOOK_PRIORITY, 0)
		})
		a.String(unix.NFTA_CHAIN_TYPE, "filter")
		return Message{Type: unix.NFT_MSG_NEWCHAIN, Flags: unix.NLM_F_CREATE, Body: a, About: "chain " + name}
	}
	names := func(msg uint16, attr uint16) string {
		var out []string
		if err := c.Dump(msg, Inet, nil, func(b []byte) {
			EachAttr(b, func(typ uint16, data []byte) {
				if typ == attr {
					out = append(out, CString(data))
				}
			})
		}); err != nil {
			t.Fatal(err)
		}
		return strings.Join(out, " ")
	}
	if err := c.CommitMessages(Inet, nil); err != nil {
		t.Errorf("nothing: %v", err)
	}
	if err := c.CommitMessages(Inet, []Message{table("one"), chain("one", "in")}); err != nil {
		t.Fatal(err)
	}
	err := c.CommitMessages(Inet, []Message{table("two"), chain("nowhere", "lost")})
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "chain lost") {
		t.Errorf("the error of a refused transaction: %v", err)
	}
	if got := names(unix.NFT_MSG_GETTABLE, unix.NFTA_TABLE_NAME); got != "one" {
		t.Errorf("tables %q", got)
	}
	if got := names(unix.NFT_MSG_GETCHAIN, unix.NFTA_CHAIN_NAME); got != "in" {
		t.Errorf("chains %q", got)
	}
	m := chain("one", "in")
	if n := m.Size(); n%4 != 0 || n < len(m.Body) {
		t.Errorf("a message of %d bytes is said to take %d", len(m.Body), n)
	}
}
