// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// readName reads an object's name as "weft why" does: NAME, NAMESPACE/NAME, KIND/NAME or KIND/NAMESPACE/NAME. kinds are
// the words for the kind.
func readName(text, namespace string, kinds ...string) (model.Name, error) {
	parts := strings.Split(text, "/")
	if len(parts) > 1 && slices.Contains(kinds, strings.ToLower(parts[0])) {
		parts = parts[1:]
	}
	name := model.Name{Namespace: namespace, Name: parts[len(parts)-1]}
	if len(parts) == 2 {
		name.Namespace = parts[0]
	}
	if len(parts) > 2 || name.Name == "" || name.Namespace == "" {
		return name, exitCode{exitTrouble, fmt.Errorf("%q: want NAME, NAMESPACE/NAME, %s/NAME or %[2]s/NAMESPACE/NAME", text, kinds[0])}
	}
	return name, nil
}
