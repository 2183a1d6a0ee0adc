// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/weft-net/weft/lab/components"
	"github.com/weft-net/weft/lab/forward"
	"github.com/weft-net/weft/lab/namespace"
)

// apiClient asks the API server the few things that the supervisor needs to know, without Kubernetes' libraries.
type apiClient struct {
	http   *http.Client
	server string
}

func newAPIClient(c *components.Cluster, ns *namespace.Net) (*apiClient, error) {
	cert, err := tls.X509KeyPair(c.Admin.Cert, c.Admin.Key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.CA)
	return &apiClient{server: c.Server(), http: &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DialContext:     forward.In(ns),
			TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots},
			IdleConnTimeout: 30 * time.Second,
		},
	}}, nil
}

// get reads a path; result is nil, or what to decode the answer into.
func (a *apiClient) get(ctx context.Context, path string, result any) error {
	return a.do(ctx, http.MethodGet, path, nil, result)
}

func (a *apiClient) do(ctx context.Context, method, path string, body []byte, result any) error {
	req, err := http.NewRequestWithContext(ctx, method, a.server+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(answer))
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer, result)
}

// waitReady waits until the API server says that it is ready.
func (a *apiClient) waitReady(limit time.Duration) error {
	err := poll(limit, 50*time.Millisecond, func(ctx context.Context) error { return a.get(ctx, "/readyz", nil) })
	if err != nil {
		return fmt.Errorf("the API server is not ready after %v: %w", limit, err)
	}
	return nil
}

// apiNode is the part of a core/v1 Node that the supervisor reads.
type apiNode struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		PodCIDRs []string `json:"podCIDRs"`
	} `json:"spec"`
	Status struct {
		Conditions []struct {
			Type    string `json:"type"`
			Status  string `json:"status"`
			Message string `json:"message"`
		} `json:"conditions"`
	} `json:"status"`
}

// condition is the Ready condition: whether it is true, and what the kubelet says of it.
func (n apiNode) condition() (bool, string) {
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True", c.Message
		}
	}
	return false, "the kubelet has not reported yet"
}

func (a *apiClient) nodes(ctx context.Context) (map[string]apiNode, error) {
	var list struct {
		Items []apiNode `json:"items"`
	}
	if err := a.get(ctx, "/api/v1/nodes", &list); err != nil {
		return nil, err
	}
	nodes := make(map[string]apiNode, len(list.Items))
	for _, n := range list.Items {
		nodes[n.Metadata.Name] = n
	}
	return nodes, nil
}

// deleteNode removes a Node object; it being gone already is what was wanted.
func (a *apiClient) deleteNode(ctx context.Context, name string) error {
	err := a.do(ctx, http.MethodDelete, "/api/v1/nodes/"+name, nil, nil)
	if nodes, listErr := a.nodes(ctx); listErr == nil {
		if _, there := nodes[name]; !there {
			return nil
		}
	}
	return err
}

// poll calls f every so often until it gives no error, and gives its last error when the limit has passed.
func poll(limit, every time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var last error
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		// The deadline's own error says less than what it interrupted.
		if last == nil || !errors.Is(err, context.DeadlineExceeded) {
			last = err
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(every):
		}
	}
}
