// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// verdict is a condition without its type: whether it is true, why, and in words.
type verdict struct {
	ok      bool
	reason  string
	message string
}

func yes[R ~string](reason R, message string) verdict { return verdict{true, string(reason), message} }

func no[R ~string](reason R, message string) verdict { return verdict{false, string(reason), message} }

// condition makes an API condition. Messages are cut where the API would refuse them.
func condition[T ~string](typ T, v verdict, generation int64) metav1.Condition {
	status := metav1.ConditionFalse
	if v.ok {
		status = metav1.ConditionTrue
	}
	const most = 32768
	if len(v.message) > most {
		v.message = strings.ToValidUTF8(v.message[:most-3], "") + "..."
	}
	return metav1.Condition{Type: string(typ), Status: status, Reason: v.reason, Message: v.message, ObservedGeneration: generation}
}

// says tells whether an object's conditions say what is wanted: all of the wanted ones, and none of our types besides.
func says(have, want []metav1.Condition, owned []string) bool {
	n := 0
	for _, h := range have {
		if slices.Contains(owned, h.Type) {
			n++
		}
	}
	if n != len(want) {
		return false
	}
	for _, w := range want {
		i := slices.IndexFunc(have, func(h metav1.Condition) bool { return h.Type == w.Type })
		if i < 0 {
			return false
		}
		h := have[i]
		h.LastTransitionTime = metav1.Time{}
		if h != w {
			return false
		}
	}
	return true
}
