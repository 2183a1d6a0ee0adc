// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/model"
)

// fromPodDNSConfig translates a pod's spec.dnsConfig; nil stays nil.
func fromPodDNSConfig(c *corev1.PodDNSConfig) *model.PodDNSConfig {
	if c == nil {
		return nil
	}
	out := &model.PodDNSConfig{Nameservers: c.Nameservers, Searches: c.Searches, Ndots: -1}
	for _, o := range c.Options {
		if o.Name != "ndots" || o.Value == nil {
			continue
		}
		if n, err := strconv.Atoi(*o.Value); err == nil && n >= 0 {
			out.Ndots = n
		}
	}
	return out
}

// dnsSelector finds what the Helm chart makes for `weft dns`.
const dnsSelector = "app.kubernetes.io/name=weft,app.kubernetes.io/component=dns"

// RunningDNS is how `weft dns` is set up in a cluster: its configuration file, and the domain that its --cluster-domain
// overrides the file's with. found is false where the chart has not been installed. It needs the right to list
// ConfigMaps and DaemonSets.
func RunningDNS(ctx context.Context, cfg *rest.Config) (file, domain string, found bool, err error) {
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return "", "", false, fmt.Errorf("API client: %w", err)
	}
	of := metav1.ListOptions{LabelSelector: dnsSelector}
	maps, err := c.CoreV1().ConfigMaps(metav1.NamespaceAll).List(ctx, of)
	if err != nil {
		return "", "", false, fmt.Errorf("list the ConfigMaps of weft dns: %w", err)
	}
	for i := range maps.Items {
		if text, ok := maps.Items[i].Data["dns.yaml"]; ok {
			file, found = text, true
		}
	}
	sets, err := c.AppsV1().DaemonSets(metav1.NamespaceAll).List(ctx, of)
	if err != nil {
		return file, "", found, fmt.Errorf("list the DaemonSets of weft dns: %w", err)
	}
	for i := range sets.Items {
		for _, container := range sets.Items[i].Spec.Template.Spec.Containers {
			for _, arg := range container.Args {
				if d, ok := strings.CutPrefix(arg, "--cluster-domain="); ok {
					domain = d
				}
			}
		}
	}
	return file, domain, found, nil
}
