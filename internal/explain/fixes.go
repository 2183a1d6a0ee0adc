// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/policy"
)

// fixesOf are the fewest changes that do the same as some: each of them once, blocks of addresses for the same rule
// together, and none that another has in it.
func fixesOf(needed []*policy.Remedy) []Fix {
	const block = "<block>"
	var out []Fix
	var blocks [][]netip.Prefix
	for _, r := range needed {
		x := Fix{r.Policy.String(), r.Field, r.Action, r.YAML}
		if r.Block.IsValid() {
			x.YAML = strings.Replace(x.YAML, r.Block.String(), block, 1)
		}
		i := slices.Index(out, x)
		if i < 0 {
			i = len(out)
			out, blocks = append(out, x), append(blocks, nil)
		}
		if r.Block.IsValid() {
			blocks[i] = withBlock(blocks[i], r.Block)
		}
	}
	for i := range out {
		x, list := &out[i], blocks[i]
		if len(list) > 1 {
			x.Action = strings.Replace(x.Action, "add the peer to", "add the peers to", 1)
		}
		var lines []string
		for line := range strings.SplitSeq(x.YAML, "\n") {
			if !strings.Contains(line, block) {
				lines = append(lines, line)
				continue
			}
			for _, b := range list {
				lines = append(lines, strings.Replace(line, block, b.String(), 1))
			}
		}
		x.YAML = strings.Join(lines, "\n")
	}
	return out
}

// withBlock adds a block to a list in which none has another in it.
func withBlock(list []netip.Prefix, b netip.Prefix) []netip.Prefix {
	in := func(a, b netip.Prefix) bool { return b.Bits() <= a.Bits() && b.Contains(a.Addr()) }
	if slices.ContainsFunc(list, func(x netip.Prefix) bool { return in(b, x) }) {
		return list
	}
	return append(slices.DeleteFunc(list, func(x netip.Prefix) bool { return in(x, b) }), b)
}
