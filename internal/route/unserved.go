// SPDX-License-Identifier: Apache-2.0

package route

import "fmt"

// ListenerError is why a gateway serves nobody at a listener, or not as its tables say: its port can't be bound, or TLS
// can't end there. It stands until an update says otherwise, not only for the update that brought it about.
type ListenerError struct {
	Listener string // its key
	Err      error
}

// Error implements error.
func (e *ListenerError) Error() string { return fmt.Sprintf("listener %s: %v", e.Listener, e.Err) }

// Unwrap gives the cause.
func (e *ListenerError) Unwrap() error { return e.Err }
