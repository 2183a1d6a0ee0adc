// SPDX-License-Identifier: Apache-2.0

// Command coredns is CoreDNS with the plugins of the Corefile that Gateway API's conformance suite deploys.
package main

import (
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/whoami"
)

func main() { coremain.Run() }
