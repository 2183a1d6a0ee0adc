// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Metrics go by the names that kubelet's /metrics/cadvisor has always had; kubelet asks for them where the feature
// gate PodAndContainerStatsFromCRI is on.
const (
	metricCPU        = "container_cpu_usage_seconds_total"
	metricWorkingSet = "container_memory_working_set_bytes"
	metricRSS        = "container_memory_rss"
	metricStart      = "container_start_time_seconds"
	metricFS         = "container_fs_usage_bytes"
	metricReceived   = "container_network_receive_bytes_total"
	metricSent       = "container_network_transmit_bytes_total"
)

var (
	containerLabels = []string{"id", "name", "image"}
	interfaceLabels = []string{"id", "name", "image", "interface"}
	descriptors     = []*runtimeapi.MetricDescriptor{
		{Name: metricCPU, Help: "Processor time used, in whole seconds.", LabelKeys: containerLabels},
		{Name: metricWorkingSet, Help: "Memory in use, in bytes.", LabelKeys: containerLabels},
		{Name: metricRSS, Help: "Resident memory, in bytes.", LabelKeys: containerLabels},
		{Name: metricStart, Help: "Start of the container, in seconds since 1970.", LabelKeys: containerLabels},
		{Name: metricFS, Help: "Size of the container's writable layer, in bytes.", LabelKeys: containerLabels},
		{Name: metricReceived, Help: "Bytes received by the pod.", LabelKeys: interfaceLabels},
		{Name: metricSent, Help: "Bytes sent by the pod.", LabelKeys: interfaceLabels},
	}
)

// ListMetricDescriptors names the metrics that ListPodSandboxMetrics has.
func (s *server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: descriptors}, nil
}

// ListPodSandboxMetrics reads the metrics of pods that run.
func (s *server) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: s.podMetrics()}, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in pieces.
func (s *server) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, to runtimeapi.RuntimeService_StreamPodSandboxMetricsServer) error {
	return inPieces(s.podMetrics(), func(part []*runtimeapi.PodSandboxMetrics) error {
		return to.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part})
	})
}

func (s *server) podMetrics() []*runtimeapi.PodSandboxMetrics {
	var all []*runtimeapi.PodSandboxMetrics
	for _, pod := range s.listPodStats(nil) {
		m := &runtimeapi.PodSandboxMetrics{PodSandboxId: pod.Attributes.Id}
		labels := []string{pod.Attributes.Id, "POD", ""}
		now := pod.Linux.Cpu.Timestamp
		for _, i := range pod.Linux.Network.Interfaces {
			on := append(append([]string{}, labels...), i.Name)
			m.Metrics = append(m.Metrics,
				metric(metricReceived, runtimeapi.MetricType_COUNTER, now, i.RxBytes.Value, on),
				metric(metricSent, runtimeapi.MetricType_COUNTER, now, i.TxBytes.Value, on))
		}
		for _, c := range pod.Linux.Containers {
			m.ContainerMetrics = append(m.ContainerMetrics, s.containerMetrics(c))
		}
		all = append(all, m)
	}
	return all
}

func (s *server) containerMetrics(stats *runtimeapi.ContainerStats) *runtimeapi.ContainerMetrics {
	id, now := stats.Attributes.Id, stats.Cpu.Timestamp
	m := &runtimeapi.ContainerMetrics{ContainerId: id}
	c, err := s.container(id)
	if err != nil {
		return m // removed meanwhile
	}
	st := c.status()
	labels := []string{id, st.Metadata.Name, st.Image.GetImage()}
	add := func(name string, kind runtimeapi.MetricType, value uint64) {
		m.Metrics = append(m.Metrics, metric(name, kind, now, value, labels))
	}
	add(metricCPU, runtimeapi.MetricType_COUNTER, stats.Cpu.UsageCoreNanoSeconds.Value/uint64(time.Second))
	add(metricWorkingSet, runtimeapi.MetricType_GAUGE, stats.Memory.WorkingSetBytes.Value)
	add(metricRSS, runtimeapi.MetricType_GAUGE, stats.Memory.RssBytes.Value)
	add(metricStart, runtimeapi.MetricType_GAUGE, uint64(st.StartedAt/int64(time.Second)))
	add(metricFS, runtimeapi.MetricType_GAUGE, stats.WritableLayer.UsedBytes.Value)
	return m
}

func metric(name string, kind runtimeapi.MetricType, at int64, value uint64, labels []string) *runtimeapi.Metric {
	return &runtimeapi.Metric{
		Name: name, Timestamp: at, MetricType: kind, LabelValues: labels, Value: &runtimeapi.UInt64Value{Value: value},
	}
}
