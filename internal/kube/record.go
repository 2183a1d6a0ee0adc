// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/weft-net/weft/internal/model"
)

// NewRecorder returns a function that writes Events about objects to the API in the background until ctx is done.
// Like events are counted up instead of repeated, and a flood about one object is cut off (client-go's spam
// filter). component is "weft-node" and the like; host is the node, or "".
func NewRecorder(ctx context.Context, cfg *rest.Config, component, host string) (func(model.Event), error) {
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	b := record.NewBroadcaster(record.WithContext(ctx))
	b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.CoreV1().Events("")})
	r := b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component, Host: host})
	return func(e model.Event) {
		kind := corev1.EventTypeNormal
		if e.Warning {
			kind = corev1.EventTypeWarning
		}
		r.Event(&corev1.ObjectReference{
			APIVersion: e.APIVersion, Kind: e.Kind, Namespace: e.Name.Namespace, Name: e.Name.Name, UID: types.UID(e.UID),
		}, kind, e.Reason, e.Message)
	}, nil
}
