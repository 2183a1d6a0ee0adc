// SPDX-License-Identifier: Apache-2.0

package model

// Event is something to tell the owner of an object about it, written to the API as a Kubernetes Event (which the
// writer bounds and de-duplicates).
type Event struct {
	APIVersion string // of the object it is about: "v1", "networking.k8s.io/v1"
	Kind       string // "Service"
	Name       Name
	UID        string
	Warning    bool   // else Normal
	Reason     string // CamelCase, for machines
	Message    string // for a person: the field, what is wrong, what was done, the cure
}
