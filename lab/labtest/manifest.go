// SPDX-License-Identifier: Apache-2.0

package labtest

import "fmt"

// EchoDeployment is the manifest of a Deployment of the echo server, labelled app=NAME, whose answers tell their pod.
// Its pods serve HTTP on 8080, HTTPS on 8443, TCP and UDP on 9000.
func EchoDeployment(name string, replicas int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      containers:
      - name: echo
        image: ghcr.io/weft-net/echo:dev
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
---
`, name, replicas)
}
