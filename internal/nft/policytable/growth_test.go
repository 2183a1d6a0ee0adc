// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/nft"
)

// Some time after a set has grown the kernel puts its elements into another order, and an answer of several parts may
// then have some of them twice and others not at all. That is never taken for what the set holds.
func TestReadOfASetThatGrows(t *testing.T) {
	r := newRig(t)
	want := elements{}
	for i := range uint32(10000) {
		want[elementKey{string(binary.BigEndian.AppendUint32(nil, 0x0a000000+i)), false}] = elementValue{}
	}
	interrupted := 0
	for round := range 10 {
		s := &set{name: fmt.Sprint("grows-", round), fields: []field{fieldAddr4}}
		if err := r.table.transact(append([]nft.Message{r.table.newSet(s)}, r.table.change(unix.NFT_MSG_NEWSETELEM, s.name, want)...)); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			switch got, err := r.table.listElements(s.name); {
			case errors.Is(err, nft.ErrInterrupted):
				interrupted++
			case err != nil:
				t.Fatal(err)
			case len(got) != len(want):
				t.Errorf("%d elements of %d were read", len(got), len(want))
			}
		}
		if err := r.table.transact([]nft.Message{r.table.delSet(s.name)}); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d reads were of no use", interrupted)
}
