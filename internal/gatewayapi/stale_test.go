// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
)

// What an earlier process wrote and no longer holds is taken back by the next, though the cause went while there was
// none: a policy's ancestors, and the status of a ListenerSet whose Gateway is gone.
func TestStaleStatusesAreTakenBack(t *testing.T) {
	name := model.Name{Namespace: "a", Name: "b"}
	c := emptyChange()
	policy := &gwv1.BackendTLSPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b", Generation: 1}}
	policy.Status.Ancestors = []gwv1.PolicyAncestorStatus{{ControllerName: ControllerName, AncestorRef: gwv1.ParentReference{Name: "gone"}}}
	c.BackendTLSPolicies[name] = policy
	accepted := metav1.Condition{Type: "Accepted", Status: metav1.ConditionTrue, Reason: "Accepted", ObservedGeneration: 1}
	set := func(ours bool) *gwv1.ListenerSet {
		ls := &gwv1.ListenerSet{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b", Generation: 1}}
		ls.Spec.ParentRef = gwv1.ParentGatewayReference{Name: "gone"}
		ls.Status.Conditions = []metav1.Condition{accepted}
		if ours {
			ls.ManagedFields = []metav1.ManagedFieldsEntry{{}}
		}
		return ls
	}
	theirs := model.Name{Namespace: "a", Name: "theirs"}
	c.ListenerSets[name], c.ListenerSets[theirs] = set(true), set(false)
	s := New(Options{})
	out := s.Apply(c)
	if got, told := out.PolicyStatuses[name]; !told || len(got) > 0 {
		t.Errorf("the policy's ancestors are %v, told: %t", got, told)
	}
	if got := out.ListenerSetStatuses[name]; got == nil || got.Conditions[0].Status != metav1.ConditionFalse {
		t.Errorf("the ListenerSet's status is %+v", got)
	}
	if got := out.ListenerSetStatuses[theirs]; got != nil {
		t.Errorf("of another's ListenerSet: %+v", got)
	}
	// It changes in another way: nothing of it is weft's still.
	c = emptyChange()
	c.ListenerSets[theirs] = set(false)
	c.ListenerSets[theirs].Generation = 2
	if got := s.Apply(c).ListenerSetStatuses[theirs]; got != nil {
		t.Errorf("of another's ListenerSet: %+v", got)
	}
}
