// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// config is what the environment says; a port of "" serves nothing.
type config struct {
	http, https, tcp, udp string
	certDir               string // tls.crt and tls.key, as a Secret's volume has them; "" is a certificate made at start
	drain                 time.Duration
	self                  self
	calls                 []call
	// opened is told, before anything is answered, the ports that were had: where "0" was asked for, whichever is free.
	// It may be nil.
	opened func(config)
}

// self is who answers, from the downward API.
type self struct {
	Pod       string `json:"pod,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Node      string `json:"node,omitempty"`
	IP        string `json:"ip,omitempty"`
}

// call is another server that "/" asks in turn.
type call struct{ name, url string }

func configFromEnv() config {
	env := func(key, def string) string {
		if v, ok := os.LookupEnv(key); ok {
			return v
		}
		return def
	}
	host, _ := os.Hostname()
	c := config{
		http: env("HTTP_PORT", "8080"), https: env("HTTPS_PORT", "8443"), tcp: env("TCP_PORT", "9000"), udp: env("UDP_PORT", "9000"),
		certDir: os.Getenv("HTTPS_CERT_DIR"), drain: 2 * time.Second,
		self: self{Pod: env("POD_NAME", host), Namespace: os.Getenv("POD_NAMESPACE"), Node: os.Getenv("NODE_NAME"), IP: os.Getenv("POD_IP")},
	}
	if d, err := time.ParseDuration(os.Getenv("DRAIN")); err == nil {
		c.drain = d
	}
	for entry := range strings.SplitSeq(os.Getenv("CALLS"), ",") {
		if name, url, ok := strings.Cut(entry, "="); ok {
			c.calls = append(c.calls, call{name, url})
		}
	}
	return c
}

// serve answers until ctx is done, then goes on for the drain time: endpoints are removed while a pod terminates,
// and what was sent to it meanwhile must still be answered. It fails if a port can't be had.
func serve(ctx context.Context, c config) error {
	s := &server{config: c}
	s.ready.Store(true)
	web := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	web.Protocols = new(http.Protocols)
	web.Protocols.SetHTTP1(true)
	web.Protocols.SetHTTP2(true)
	web.Protocols.SetUnencryptedHTTP2(true)

	cert, err := c.certificate()
	if err != nil {
		return err
	}
	web.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"}}
	var work []func() error
	for _, p := range []struct {
		port  *string
		serve func(net.Listener) error
	}{
		{&c.http, web.Serve},
		{&c.https, func(l net.Listener) error { return web.ServeTLS(l, "", "") }},
		{&c.tcp, s.serveTCP},
	} {
		if *p.port == "" {
			continue
		}
		l, err := net.Listen("tcp", ":"+*p.port)
		if err != nil {
			return err
		}
		defer l.Close()
		*p.port = portOf(l.Addr())
		work = append(work, func() error { return p.serve(l) })
	}
	if c.udp != "" {
		p, err := listenUDP(c.udp)
		if err != nil {
			return err
		}
		defer p.Close()
		c.udp = portOf(p.conn.LocalAddr())
		work = append(work, func() error { return p.serve(s) })
	}
	if c.opened != nil {
		c.opened(c)
	}
	failed := make(chan error, len(work))
	for _, w := range work {
		go func() { failed <- w() }()
	}

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	s.ready.Store(false)
	time.Sleep(c.drain)
	stop, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := web.Shutdown(stop); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

func portOf(a net.Addr) string {
	_, port, _ := net.SplitHostPort(a.String())
	return port
}

type server struct {
	config
	ready atomic.Bool
}

func (s *server) serveTCP(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			fmt.Fprintln(conn, s.line("tcp", conn.RemoteAddr().String()))
			_, _ = io.Copy(conn, conn)
		}()
	}
}

// line is the answer where there is no room for JSON's structure.
func (s *server) line(proto, client string) string {
	return fmt.Sprintf("pod=%s namespace=%s node=%s ip=%s proto=%s client=%s", s.self.Pod, s.self.Namespace, s.self.Node, s.self.IP, proto, client)
}

func (c config) certificate() (tls.Certificate, error) {
	if c.certDir == "" {
		return selfSigned(c.self)
	}
	return tls.LoadX509KeyPair(filepath.Join(c.certDir, "tls.crt"), filepath.Join(c.certDir, "tls.key"))
}

// selfSigned makes a certificate for the pod's own names.
func selfSigned(who self) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "echo " + who.Pod},
		DNSNames:     []string{"localhost", who.Pod},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(who.IP); ip != nil {
		t.IPAddresses = []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
