// SPDX-License-Identifier: Apache-2.0

package install

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

var podResource = corev1.SchemeGroupVersion.WithResource("pods")

// podTrouble says why a pod is not ready, or nothing where it is.
func podTrouble(object unstructured.Unstructured) string {
	var pod corev1.Pod
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &pod); err != nil {
		return err.Error()
	}
	var said []string
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return ""
		}
		if c.Status != corev1.ConditionTrue && c.Message != "" {
			said = append(said, c.Message)
		}
	}
	for _, c := range pod.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Message != "" {
			said = append(said, w.Reason+": "+w.Message)
		}
		if t := c.LastTerminationState.Terminated; t != nil {
			said = append(said, fmt.Sprintf("%s ended with status %d: %s", c.Name, t.ExitCode, t.Message))
		}
	}
	return fmt.Sprintf("\npod %s on %s: %s", pod.Name, pod.Spec.NodeName, strings.Join(said, "; "))
}
