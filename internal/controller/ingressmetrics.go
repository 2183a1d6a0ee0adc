// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/route"
)

// ingressMetrics exports what Ingresses holds.
type ingressMetrics struct {
	served   prometheus.Gauge
	troubled prometheus.Gauge
	problems *prometheus.CounterVec
	written  prometheus.Counter
	failed   prometheus.Counter
}

func newIngressMetrics() *ingressMetrics {
	return &ingressMetrics{
		served:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_ingresses", Help: "Ingresses that weft serves."}),
		troubled: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_ingresses_with_problems", Help: "Ingresses that weft serves and has something to say about: their Events tell what."}),
		problems: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_ingress_problems_total", Help: "Problems of Ingresses that were told in an Event."}, []string{"reason"}),
		written:  prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_ingress_status_writes_total", Help: "Writes of Ingresses' addresses that were needed and succeeded."}),
		failed:   prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_ingress_status_write_failures_total", Help: "Writes of Ingresses' addresses that failed and are tried again."}),
	}
}

func (m *ingressMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.served, m.troubled, m.problems, m.written, m.failed}
}

// Describe implements prometheus.Collector.
func (m *ingressMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *ingressMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(ch)
	}
}

func (m *ingressMetrics) observe(s *ingress.State) {
	served, troubled := s.Count()
	m.served.Set(float64(served))
	m.troubled.Set(float64(troubled))
}

// fallbackCertificate makes the certificate of hosts that have none: nobody trusts it, and its name says why it is seen.
// It lasts as long as the term of leadership.
func fallbackCertificate() (*route.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("default certificate: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("default certificate: %w", err)
	}
	now := time.Now()
	name := "weft default certificate"
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{"default.invalid"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(5, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("default certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("default certificate: %w", err)
	}
	return &route.Certificate{
		Key:        "weft/default",
		Chain:      string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		PrivateKey: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
	}, nil
}
