// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"log/slog"

	"github.com/weft-net/weft/internal/model"
)

// Logged gives a recorder of Events that logs warnings as well, such as a Secret that is missing or a route's backend
// that is not there: who reads the controller's log finds what is wrong with whose object.
func Logged(record func(model.Event), log *slog.Logger) func(model.Event) {
	return func(e model.Event) {
		record(e)
		if e.Warning {
			log.Warn(e.Message, "kind", e.Kind, "namespace", e.Name.Namespace, "name", e.Name.Name, "reason", e.Reason)
		}
	}
}
