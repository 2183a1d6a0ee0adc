// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-net/weft/internal/model"
)

// triggerTime is the annotation of an EndpointSlice that says when what it tells of happened, and triggerKept how long
// that is worth keeping.
const (
	triggerTime = corev1.EndpointsLastChangeTriggerTime
	triggerKept = 10 * time.Minute
)

// someSelector stands for a Service's selector: for names only that there is one matters (dnszone.Zone.Kind), and all can
// share it.
var someSelector = map[string]string{"": ""}

// namesService is FromService for Options.ForNames. The object is the watcher's own: it is trimmed
// before it is translated, so that what is left out never has a copy.
func namesService(s *corev1.Service) (*model.Service, error) {
	selects := len(s.Spec.Selector) > 0
	s.Labels, s.Spec.Selector = nil, nil
	out, err := FromService(s)
	out.UID = ""
	if selects {
		out.Selector = someSelector
	}
	return out, err
}

// namesEndpointSlice does the same for FromEndpointSlice.
func namesEndpointSlice(s *discoveryv1.EndpointSlice) (*model.EndpointSlice, error) {
	for i := range s.Endpoints {
		s.Endpoints[i].Hints, s.Endpoints[i].Zone = nil, nil
	}
	// When a change was caused is asked of changes; of what has been so for long it only takes room.
	if at, err := time.Parse(time.RFC3339Nano, s.Annotations[triggerTime]); err != nil || time.Since(at) > triggerKept {
		delete(s.Annotations, triggerTime)
	}
	of := s.Labels[discoveryv1.LabelServiceName]
	s.Labels = nil
	out, err := FromEndpointSlice(s)
	out.UID, out.Service = "", intern(of)
	return out, err
}

// namesPod does the same for FromPod.
func namesPod(p *corev1.Pod) (*model.Pod, error) {
	p.Labels, p.Spec.Containers, p.Spec.InitContainers = nil, nil, nil
	p.Spec.DNSPolicy, p.Spec.DNSConfig = "", nil
	out, err := FromPod(p)
	out.UID = ""
	return out, err
}
