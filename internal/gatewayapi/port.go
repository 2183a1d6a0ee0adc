// SPDX-License-Identifier: Apache-2.0

package gatewayapi

// privilegedOffset moves ports below 1024 to 61001 and above: beyond the range from which Linux takes the ports of
// outgoing connections (ip_local_port_range, 32768 to 60999), so that the port is free whenever a listener comes.
const privilegedOffset = 61000

// BindPort is the port that a gateway's pods bind for a port that clients connect to: 80 is 61080, 443 is 61443, ports
// from 1024 on are as they are. So pods need no privilege, and a port's place does not depend on other listeners. Of
// listeners on 80 and 61080 of one Gateway the one that comes later gets PortUnavailable.
func BindPort(port uint16) uint16 {
	if port < 1024 {
		return port + privilegedOffset
	}
	return port
}
