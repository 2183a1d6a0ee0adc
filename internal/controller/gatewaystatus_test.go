// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/gatewayapi"
)

func parent(controller, name string, conditions ...metav1.Condition) gatewayv1.RouteParentStatus {
	return gatewayv1.RouteParentStatus{ControllerName: gatewayv1.GatewayController(controller),
		ParentRef: gatewayv1.ParentReference{Name: gatewayv1.ObjectName(name)}, Conditions: conditions}
}

// Entries keep their places, whoever wrote them: two controllers that each put their own last would write for ever.
func TestEntriesKeepTheirPlaces(t *testing.T) {
	const ours, theirs = gatewayapi.ControllerName, "example.com/other"
	foreign := metav1.Condition{Type: "example.com/Deep", Status: metav1.ConditionTrue, Reason: "Theirs"}
	route := &gatewayv1.HTTPRoute{}
	route.Status.Parents = []gatewayv1.RouteParentStatus{
		parent(ours, "a", metav1.Condition{Type: "example.com/Note", Status: metav1.ConditionTrue}), parent(theirs, "b", foreign),
		parent(ours, "gone"), parent(theirs, "c"), parent(ours, "d"),
	}
	order := func(parents []gatewayv1.RouteParentStatus) string {
		var out []string
		for _, p := range parents {
			out = append(out, string(p.ControllerName)+" "+string(p.ParentRef.Name))
		}
		return strings.Join(out, ", ")
	}
	wanted := []gatewayv1.RouteParentStatus{parent(ours, "new"), parent(ours, "d"), parent(ours, "a", metav1.Condition{Type: "Accepted", Status: metav1.ConditionTrue})}
	_, merged := statusOf(route, wanted, metav1.Now())
	got := merged.(*gatewayv1.RouteStatus).Parents
	if want := ours + " a, " + theirs + " b, " + theirs + " c, " + ours + " d, " + ours + " new"; order(got) != want {
		t.Errorf("%s, want %s", order(got), want)
	}
	if c := got[0].Conditions; len(c) != 2 || c[0].Type != "example.com/Note" || c[1].Type != "Accepted" {
		t.Errorf("conditions of ours: %v", c)
	}
	if c := got[1].Conditions; len(c) != 1 || c[0] != foreign {
		t.Errorf("conditions of theirs: %v", c)
	}
	route.Status.Parents = got
	old, merged := statusOf(route, wanted, metav1.Now())
	if patch := mergePatch(route, old, merged); patch != nil {
		t.Errorf("written again: %s", patch)
	}
	slices.Reverse(route.Status.Parents) // as another controller may have it
	old, merged = statusOf(route, wanted, metav1.Now())
	if patch := mergePatch(route, old, merged); patch != nil {
		t.Errorf("only the order differs, and it is written: %s", patch)
	}
}

// Ancestors of a policy that others wrote stay as they are, and count for how many the API lets there be.
func TestForeignAncestorsStay(t *testing.T) {
	ancestor := func(controller, name string) gatewayv1.PolicyAncestorStatus {
		ns := gatewayv1.Namespace("n")
		return gatewayv1.PolicyAncestorStatus{ControllerName: gatewayv1.GatewayController(controller),
			AncestorRef: gatewayv1.ParentReference{Namespace: &ns, Name: gatewayv1.ObjectName(name)}}
	}
	policy := &gatewayv1.BackendTLSPolicy{}
	var wanted []gatewayv1.PolicyAncestorStatus
	for i := range 10 {
		a := ancestor("example.com/other", fmt.Sprint("theirs", i))
		a.Conditions = []metav1.Condition{{Type: "example.com/Deep", Status: metav1.ConditionTrue, Reason: "Theirs"}}
		policy.Status.Ancestors = append(policy.Status.Ancestors, a)
		wanted = append(wanted, ancestor(gatewayapi.ControllerName, fmt.Sprint("ours", i)))
	}
	_, merged := statusOf(policy, wanted, metav1.Now())
	got := merged.(*gatewayv1.PolicyStatus).Ancestors
	if len(got) != 16 || string(encode(got[:10])) != string(encode(policy.Status.Ancestors)) {
		t.Errorf("%d entries: %s", len(got), encode(got))
	}
	if out := cutOff(wanted, merged); len(out) != 4 || out[0].String() != "n/ours6" {
		t.Errorf("without room: %v", out)
	}
}
