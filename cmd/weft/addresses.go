// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/pflag"

	"github.com/weft-net/weft/internal/addresses"
)

// addLoadBalancerFlags registers the flags that say which Services are weft's, the same for all commands that ask.
func addLoadBalancerFlags(fs *pflag.FlagSet, opts *addresses.Options) {
	fs.StringVar(&opts.Class, "load-balancer-class", opts.Class, "spec.loadBalancerClass of the Services that weft serves")
	fs.BoolVar(&opts.Unclassed, "default-load-balancer", opts.Unclassed, "serve Services that have no spec.loadBalancerClass too")
}
