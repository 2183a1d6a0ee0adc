// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"context"
	"fmt"

	"github.com/weft-net/weft/internal/nft"
)

// Watch calls changed whenever somebody else has changed the table, or may have, until ctx is done. It hears of what
// happens from the first Sync on: until then the table is not ours to judge.
func (t *Table) Watch(ctx context.Context, changed func()) error {
	for {
		foreign, err := t.monitor.Wait(ctx, nft.Table{Family: nft.Inet, Name: t.name})
		if err != nil {
			return fmt.Errorf("watch table inet %s: %w", t.name, err)
		}
		if !foreign {
			return nil
		}
		changed()
	}
}
