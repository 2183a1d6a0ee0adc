// SPDX-License-Identifier: Apache-2.0

package model

import "fmt"

// ProxyProtocolAnnotation is the annotation of a Service whose pods expect each TCP connection to begin with a header of
// the PROXY protocol: "v1" or "v2". Gateways then send one, with the client's address.
const ProxyProtocolAnnotation = "weft.dev/proxy-protocol"

// ProxyProtocol is the version (1 or 2) of the PROXY protocol's header that a Service's pods expect from gateways; 0 is
// none. The error names the annotation that can't be understood.
func (s *Service) ProxyProtocol() (version int, err error) {
	switch v, there := s.Annotations[ProxyProtocolAnnotation]; {
	case !there:
		return 0, nil
	case v == "v1":
		return 1, nil
	case v == "v2":
		return 2, nil
	default:
		return 0, fmt.Errorf("annotation %s of Service %s: %q is neither v1 nor v2", ProxyProtocolAnnotation, s.Name, v)
	}
}
