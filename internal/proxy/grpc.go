// SPDX-License-Identifier: Apache-2.0

package proxy

import "time"

// maxCallTimeout is the longest grpc-timeout that is heeded; longer ones are no bound worth the name.
const maxCallTimeout = 24 * time.Hour

// callTimeout is how long a gRPC call's client waits for its end (gRPC over HTTP/2: grpc-timeout). An endpoint that does
// not heed it is not waited for either.
func (x *exchange) callTimeout() (time.Duration, bool) {
	if !x.call {
		return 0, false
	}
	v, ok := x.Lookup("grpc-timeout")
	if !ok {
		return 0, false
	}
	return parseCallTimeout(v)
}

// parseCallTimeout reads 1 to 8 digits and a unit.
func parseCallTimeout(v string) (time.Duration, bool) {
	n := len(v) - 1
	if n < 1 || n > 8 {
		return 0, false
	}
	var unit time.Duration
	switch v[n] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, false
	}
	d := time.Duration(0)
	for i := range n {
		if v[i] < '0' || v[i] > '9' {
			return 0, false
		}
		d = d*10 + time.Duration(v[i]-'0')
	}
	if d > maxCallTimeout/unit {
		return 0, false
	}
	return d * unit, true
}
