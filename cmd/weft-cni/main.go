// SPDX-License-Identifier: Apache-2.0

// Command weft-cni is the CNI plugin alone: what `weft cni` does, in a binary that starts in 2 ms where the whole
// of weft takes 8 to initialize its packages. The runtime starts it for every pod that comes or goes.
package main

import (
	"os"

	"github.com/weft-net/weft/internal/podnet/plugin"
)

func main() { os.Exit(plugin.Main()) }
