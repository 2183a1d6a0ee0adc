// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/addresses"
	"github.com/weft-net/weft/internal/gatewayapi"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// gatewayMetricsPort is where a gateway's pods answer /metrics, /livez and /readyz: no listener can be bound there.
const gatewayMetricsPort = 9642

// How a gateway's pod ends: it goes on taking connections until no node sends it any more, then lets requests under
// way come to their end.
const (
	drainDelaySeconds   = 5
	defaultDrainSeconds = 30
	endSlackSeconds     = 5
)

// Where a pod finds what it needs.
const (
	identityDir = "/etc/weft/identity"
	keepDir     = "/run/weft"
)

// gatewayUser is whom a gateway's pods run as.
const gatewayUser int64 = 65532

// PodOptions say what a gateway's pods are made of.
type PodOptions struct {
	// Image of weft, the controller's own.
	Image      string
	PullPolicy string
	// PullSecrets are looked for in each Gateway's namespace.
	PullSecrets []string
	// Server is the "host:port" of the configuration stream.
	Server string
}

// partKinds are the kinds of objects that are made for a Gateway, in the order in which they are.
var partKinds = []struct {
	kind     string
	resource schema.GroupVersionResource
}{
	{"ServiceAccount", corev1.SchemeGroupVersion.WithResource("serviceaccounts")},
	{"Secret", corev1.SchemeGroupVersion.WithResource("secrets")},
	{"Deployment", appsv1.SchemeGroupVersion.WithResource("deployments")},
	{"Service", corev1.SchemeGroupVersion.WithResource("services")},
	{"PodDisruptionBudget", policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets")},
}

// partName is the name of everything made for a Gateway: its own with that of its class, as GEP-1762 has it, shortened
// with a checksum where a Service's name could not be that long.
func partName(gw *gatewayv1.Gateway) string {
	return shortName(gw.Name + "-" + string(gw.Spec.GatewayClassName))
}

// labelValue is a name as a label: itself, which GEP-1762 wants, unless it is longer than labels are.
func labelValue(name string) string {
	if len(name) <= validation.LabelValueMaxLength {
		return name
	}
	return shortName(name)
}

// shortName fits a name into the 63 characters of Services' names, which have no dots.
func shortName(s string) string {
	short := strings.ReplaceAll(s, ".", "-")
	if short == s && len(s) <= 63 {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return strings.TrimRight(fmt.Sprintf("%.52s", short), "-") + "-" + hex.EncodeToString(sum[:5])
}

// gatewayKey names a Gateway's tables in the configuration stream.
func gatewayKey(n model.Name) string { return "Gateway/" + n.Namespace + "/" + n.Name }

// mergedConfig is a GatewayConfig over the one of the class.
func mergedConfig(class, own *v1alpha1.GatewayConfig) v1alpha1.GatewayConfigSpec {
	var out v1alpha1.GatewayConfigSpec
	for _, c := range []*v1alpha1.GatewayConfig{class, own} {
		if c == nil {
			continue
		}
		overlay(reflect.ValueOf(&out).Elem(), reflect.ValueOf(*c.Spec.DeepCopy()))
	}
	return out
}

// overlay copies the fields that are set; of structs of weft's own, field by field.
func overlay(dst, src reflect.Value) {
	for i := range src.NumField() {
		from, to := src.Field(i), dst.Field(i)
		switch {
		case from.IsZero():
		case from.Kind() == reflect.Pointer && from.Type().Elem().Kind() == reflect.Struct && !to.IsNil() &&
			from.Type() != reflect.TypeFor[*corev1.ResourceRequirements]():
			overlay(to.Elem(), from.Elem())
		default:
			to.Set(from)
		}
	}
}

// selectorOf is what a Gateway's pods are found by. A Deployment's selector can't change: has, which is that of the Gateway
// or nil, keeps the shortened name that earlier releases gave it where it has dots, for as long as it is there.
func selectorOf(gw *gatewayv1.Gateway, has *appsv1.Deployment) map[string]string {
	name := labelValue(gw.Name)
	if has != nil && metav1.IsControlledBy(has, gw) && has.Spec.Selector != nil && has.Spec.Selector.MatchLabels[gatewayv1.GatewayNameLabelKey] == shortName(gw.Name) {
		name = shortName(gw.Name)
	}
	return map[string]string{
		gatewayv1.GatewayNameLabelKey:  name,
		"app.kubernetes.io/name":       "weft",
		"app.kubernetes.io/component":  "gateway",
		"gateway.weft.dev/gateway-uid": string(gw.UID),
	}
}

// partsOf makes the objects that a Gateway asks for, without the Secret, whose data is not decided here. has is its
// Deployment as the API shows it; nil is none.
func partsOf(gw *gatewayv1.Gateway, in *gatewayapi.Infrastructure, conf v1alpha1.GatewayConfigSpec, opts PodOptions, has *appsv1.Deployment) []*unstructured.Unstructured {
	selector := selectorOf(gw, has)
	own := func() metav1.ObjectMeta { return partMeta(gw, in) }
	pods := metav1.ObjectMeta{Labels: maps.Clone(in.Labels), Annotations: in.Annotations}
	if pods.Labels == nil {
		pods.Labels = map[string]string{}
	}
	pods.Labels[gatewayv1.GatewayClassNameLabelKey] = labelValue(string(gw.Spec.GatewayClassName))
	maps.Copy(pods.Labels, selector)
	out := []runtime.Object{
		&corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: own(), AutomountServiceAccountToken: new(false)},
		deploymentOf(own(), selector, pods, conf, opts),
	}
	if len(in.Ports) > 0 {
		out = append(out, serviceOf(own(), selector, in, conf.Service))
	}
	out = append(out, &policyv1.PodDisruptionBudget{
		TypeMeta: metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"}, ObjectMeta: own(),
		Spec: policyv1.PodDisruptionBudgetSpec{MaxUnavailable: new(intstr.FromInt32(1)), Selector: &metav1.LabelSelector{MatchLabels: selector}},
	})
	objects := make([]*unstructured.Unstructured, len(out))
	for i, o := range out {
		objects[i] = asUnstructured(o)
	}
	return objects
}

// drainSeconds is for how long requests under way may go on when a pod ends.
func drainSeconds(conf v1alpha1.GatewayConfigSpec) int64 {
	if conf.DrainSeconds != nil {
		return *conf.DrainSeconds
	}
	return defaultDrainSeconds
}

// podArgs are the arguments of a gateway's pods.
func podArgs(conf v1alpha1.GatewayConfigSpec, opts PodOptions) []string {
	args := []string{
		"gateway",
		"--controller=" + opts.Server,
		"--identity=" + identityDir,
		"--keep=" + keepDir + "/tables",
		fmt.Sprintf("--metrics-bind-address=:%d", gatewayMetricsPort),
		fmt.Sprintf("--drain-delay=%ds", drainDelaySeconds),
		fmt.Sprintf("--drain=%ds", drainSeconds(conf)),
	}
	if l := conf.AccessLog; l != nil {
		args = append(args, "--access-log="+l.Format)
		if l.Percent != nil {
			args = append(args, "--access-log-share="+strconv.FormatFloat(float64(*l.Percent)/100, 'f', -1, 64))
		}
	}
	if conf.TunnelIdleSeconds != nil {
		args = append(args, fmt.Sprintf("--tunnel-idle=%ds", *conf.TunnelIdleSeconds))
	}
	return append(args, conf.Args...)
}

// deploymentOf runs a gateway's pods, whose metadata is pods, under the ServiceAccount and with the Secret of its own name.
func deploymentOf(meta metav1.ObjectMeta, selector map[string]string, pods metav1.ObjectMeta, conf v1alpha1.GatewayConfigSpec, opts PodOptions) *appsv1.Deployment {
	resources := corev1.ResourceRequirements{Requests: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("50m"), corev1.ResourceMemory: resource.MustParse("64Mi"),
	}}
	if conf.Resources != nil {
		resources = *conf.Resources
	}
	nodes := map[string]string{corev1.LabelOSStable: "linux"}
	maps.Copy(nodes, conf.NodeSelector)
	var pullSecrets []corev1.LocalObjectReference
	for _, s := range opts.PullSecrets {
		pullSecrets = append(pullSecrets, corev1.LocalObjectReference{Name: s})
	}
	replicas := int32(2)
	if conf.Replicas != nil {
		replicas = int32(*conf.Replicas)
	}
	probe := func(path string, period, failures int32) *corev1.Probe {
		return &corev1.Probe{PeriodSeconds: period, FailureThreshold: failures,
			ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("metrics")}}}
	}
	return &appsv1.Deployment{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}, ObjectMeta: meta,
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: selector},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{
				MaxUnavailable: new(intstr.FromInt32(0)), MaxSurge: new(intstr.FromInt32(1)),
			}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: pods,
				Spec: corev1.PodSpec{
					ServiceAccountName:            meta.Name,
					AutomountServiceAccountToken:  new(false),
					EnableServiceLinks:            new(false),
					ImagePullSecrets:              pullSecrets,
					PriorityClassName:             conf.PriorityClassName,
					NodeSelector:                  nodes,
					Tolerations:                   conf.Tolerations,
					TerminationGracePeriodSeconds: new(drainDelaySeconds + drainSeconds(conf) + endSlackSeconds),
					SecurityContext: &corev1.PodSecurityContext{
						RunAsNonRoot: new(true), RunAsUser: new(gatewayUser), RunAsGroup: new(gatewayUser), FSGroup: new(gatewayUser),
						SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
					},
					TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
						MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway,
						LabelSelector: &metav1.LabelSelector{MatchLabels: selector},
					}},
					Containers: []corev1.Container{{
						Name: "gateway", Image: opts.Image, ImagePullPolicy: corev1.PullPolicy(opts.PullPolicy),
						Args: podArgs(conf, opts),
						Env: []corev1.EnvVar{
							{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.name"}}},
							{Name: "TMPDIR", Value: keepDir}, // the one place that can be written to
						},
						Ports:          []corev1.ContainerPort{{Name: "metrics", ContainerPort: gatewayMetricsPort, Protocol: corev1.ProtocolTCP}},
						ReadinessProbe: probe("/readyz", 1, 2),
						LivenessProbe:  probe("/livez", 10, 6),
						Resources:      resources,
						SecurityContext: &corev1.SecurityContext{
							AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
							Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
						},
						VolumeMounts: []corev1.VolumeMount{
							{Name: "identity", MountPath: identityDir, ReadOnly: true},
							{Name: "tables", MountPath: keepDir},
						},
					}},
					Volumes: []corev1.Volume{
						{Name: "identity", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: meta.Name, DefaultMode: new(int32(0o440))}}},
						{Name: "tables", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{
							Medium: corev1.StorageMediumMemory, SizeLimit: new(resource.MustParse("256Mi"))}}},
					},
				},
			},
		},
	}
}

// partMeta is the metadata of each object made for a Gateway, which owns it: with the Gateway it goes.
func partMeta(gw *gatewayv1.Gateway, in *gatewayapi.Infrastructure) metav1.ObjectMeta {
	labels := maps.Clone(in.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, map[string]string{
		gatewayv1.GatewayNameLabelKey:      labelValue(gw.Name),
		gatewayv1.GatewayClassNameLabelKey: labelValue(string(gw.Spec.GatewayClassName)),
		"app.kubernetes.io/name":           "weft",
		"app.kubernetes.io/component":      "gateway",
		kube.OwnedBy:                       kube.ManagedBy,
	})
	return metav1.ObjectMeta{
		Namespace: gw.Namespace, Name: partName(gw), Labels: labels, Annotations: maps.Clone(in.Annotations),
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway", Name: gw.Name, UID: gw.UID,
			Controller: new(true), BlockOwnerDeletion: new(false),
		}},
	}
}

func serviceOf(meta metav1.ObjectMeta, selector map[string]string, in *gatewayapi.Infrastructure, conf *v1alpha1.GatewayService) *corev1.Service {
	if conf == nil {
		conf = &v1alpha1.GatewayService{}
	}
	out := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: meta,
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: selector,
			IPFamilyPolicy: new(corev1.IPFamilyPolicyPreferDualStack),
		},
	}
	switch {
	case conf.Type != "":
		out.Spec.Type = corev1.ServiceType(conf.Type)
	case in.ClusterOnly:
		out.Spec.Type = corev1.ServiceTypeClusterIP
	}
	if len(in.ClusterAddresses) > 0 {
		out.Spec.ClusterIP, out.Spec.ClusterIPs = in.ClusterAddresses[0], in.ClusterAddresses
	}
	if out.Spec.Type != corev1.ServiceTypeClusterIP {
		out.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicy(conf.ExternalTrafficPolicy)
	}
	if out.Spec.Type == corev1.ServiceTypeLoadBalancer {
		if conf.LoadBalancerClass != "" {
			out.Spec.LoadBalancerClass = &conf.LoadBalancerClass
		}
		out.Spec.LoadBalancerSourceRanges = conf.LoadBalancerSourceRanges
		if len(in.Addresses) > 0 {
			if out.Annotations == nil {
				out.Annotations = map[string]string{}
			}
			out.Annotations[addresses.RequestAnnotation] = strings.Join(in.Addresses, ",")
			if len(in.Addresses) == 1 {
				out.Spec.LoadBalancerIP = in.Addresses[0] // what other implementations read
			}
		}
	}
	for _, p := range in.Ports {
		out.Spec.Ports = append(out.Spec.Ports, corev1.ServicePort{
			Name: p.Name, Protocol: corev1.Protocol(p.Protocol.String()), Port: int32(p.Port), TargetPort: intstr.FromInt32(int32(p.BindPort)),
		})
	}
	return out
}

// portsOf are the ports that a Gateway's Service has: none as long as there is no Service.
func portsOf(svc *corev1.Service) []gatewayapi.Port {
	out := []gatewayapi.Port{}
	if svc == nil {
		return out
	}
	for _, p := range svc.Spec.Ports {
		if proto, err := model.ParseProtocol(string(p.Protocol)); err == nil {
			out = append(out, gatewayapi.Port{Name: p.Name, Protocol: proto, Port: uint16(p.Port), BindPort: uint16(p.TargetPort.IntValue())})
		}
	}
	return out
}

// secretOf is the Secret with the pods' client certificate.
func secretOf(gw *gatewayv1.Gateway, in *gatewayapi.Infrastructure, data map[string][]byte) *unstructured.Unstructured {
	return asUnstructured(&corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: partMeta(gw, in),
		Type: corev1.SecretTypeTLS, Data: data,
	})
}

// asUnstructured makes an object one for server-side apply: only what is set.
func asUnstructured(o runtime.Object) *unstructured.Unstructured {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		panic(err) // the API's own types
	}
	delete(fields, "status")
	u := &unstructured.Unstructured{Object: fields}
	unstructured.RemoveNestedField(fields, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(fields, "spec", "template", "metadata", "creationTimestamp")
	return u
}

// fingerprint sums up what somebody could have changed of an object: all but its status and what the API server keeps
// for itself.
func fingerprint(o any) string {
	var fields map[string]any
	if err := json.Unmarshal(encode(o), &fields); err != nil {
		return ""
	}
	delete(fields, "status")
	delete(fields, "apiVersion")
	delete(fields, "kind")
	if meta, ok := fields["metadata"].(map[string]any); ok {
		kept := map[string]any{}
		for _, k := range []string{"uid", "labels", "annotations", "ownerReferences", "deletionTimestamp"} {
			if v, ok := meta[k]; ok {
				kept[k] = v
			}
		}
		fields["metadata"] = kept
	}
	sum := sha256.Sum256(encode(fields))
	return hex.EncodeToString(sum[:])
}

// addressesOf are the addresses by which a Gateway's Service is reached, and what is wrong with them.
func addressesOf(svc *corev1.Service, in *gatewayapi.Infrastructure, nodes []string) ([]gatewayapi.Address, *gatewayapi.Problem) {
	var out []gatewayapi.Address
	var have []string
	add := func(ip, host string) {
		if a, ok := parseAddress(ip); ok {
			out, have = append(out, gatewayapi.Address{IP: a}), append(have, a.String())
		} else if host != "" {
			out = append(out, gatewayapi.Address{Hostname: host})
		}
	}
	switch {
	case len(in.Ports) == 0:
		return nil, nil
	case svc == nil:
		return nil, &gatewayapi.Problem{Reason: gatewayv1.GatewayReasonPending, Message: "The Gateway's Service is being made."}
	case in.ClusterOnly:
	case svc.Spec.Type == corev1.ServiceTypeLoadBalancer:
		for _, i := range svc.Status.LoadBalancer.Ingress {
			add(i.IP, i.Hostname)
		}
	case svc.Spec.Type == corev1.ServiceTypeNodePort:
		for _, n := range nodes {
			add(n, "")
		}
	default:
		for _, ip := range svc.Spec.ClusterIPs {
			add(ip, "")
		}
	}
	for _, want := range in.Addresses {
		if a, ok := parseAddress(want); ok && !slices.Contains(have, a.String()) {
			return out, &gatewayapi.Problem{Reason: gatewayv1.GatewayReasonAddressNotUsable, Message: fmt.Sprintf(
				"spec.addresses asks for %s, which Service %s/%s did not get (see its Events): ask for an address of an AddressPool that no other Service has, one of each family.",
				want, svc.Namespace, svc.Name)}
		}
	}
	for _, want := range in.ClusterAddresses {
		if !slices.Contains(svc.Spec.ClusterIPs, want) {
			return out, &gatewayapi.Problem{Reason: gatewayv1.GatewayReasonAddressNotUsable, Message: fmt.Sprintf(
				"spec.addresses asks for the ClusterIP %s, and Service %s/%s has %s, which can't change: make the Gateway anew with an address that no other Service has.",
				want, svc.Namespace, svc.Name, strings.Join(svc.Spec.ClusterIPs, " and "))}
		}
	}
	if len(in.Addresses) > 0 {
		// What was asked for is the answer; an address of the other family is not the Gateway's.
		out = slices.DeleteFunc(out, func(a gatewayapi.Address) bool {
			return !slices.ContainsFunc(in.Addresses, func(want string) bool { w, ok := parseAddress(want); return ok && w == a.IP })
		})
	}
	if len(out) == 0 && !in.ClusterOnly {
		return nil, &gatewayapi.Problem{Reason: gatewayv1.GatewayReasonAddressNotAssigned, Message: fmt.Sprintf(
			"Service %s/%s of type %s has no address yet (see its Events): is there an AddressPool with free addresses?", svc.Namespace, svc.Name, svc.Spec.Type)}
	}
	if in.Cluster {
		for _, ip := range svc.Spec.ClusterIPs {
			a, ok := parseAddress(ip)
			if !ok || len(in.ClusterAddresses) > 0 && !slices.Contains(in.ClusterAddresses, ip) {
				continue
			}
			out = slices.DeleteFunc(out, func(o gatewayapi.Address) bool { return o.IP == a }) // a Service of type ClusterIP has no other
			out = append(out, gatewayapi.Address{IP: a, Cluster: true})
		}
	}
	return out, nil
}
