// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Access says how to reach an API server: the flags that kubectl users expect.
type Access struct {
	Kubeconfig string
	Context    string
	Server     string // overrides the server's URL
}

// AddFlags registers --kubeconfig, --context and --server.
func (a *Access) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&a.Kubeconfig, "kubeconfig", a.Kubeconfig, "kubeconfig `file` (default: $KUBECONFIG, then ~/.kube/config, then the pod's service account)")
	fs.StringVar(&a.Context, "context", a.Context, "kubeconfig context to use")
	fs.StringVar(&a.Server, "server", a.Server, "URL of the API server, in place of the configured one")
}

func (a *Access) loader() clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = a.Kubeconfig
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{
		CurrentContext: a.Context,
	})
}

// Config resolves the access. No client-side rate limit applies: weft makes few requests besides its watches, and
// the API server's priority and fairness decides when it is busy.
func (a *Access) Config() (*rest.Config, error) {
	cfg, err := a.loader().ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		// client-go takes the pod's service account only where nothing is overridden; a node's agent overrides the
		// server, since Services work only once it has made them.
		cfg, err = rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("no cluster to talk to: set KUBECONFIG or --kubeconfig (outside a pod there is no service account)")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	if a.Server != "" {
		cfg.Host = a.Server
	}
	cfg.QPS = -1
	cfg.UserAgent = "weft"
	return cfg, nil
}

// Namespace is the namespace that a command without -n means: the context's, else "default".
func (a *Access) Namespace() string {
	ns, _, err := a.loader().Namespace()
	if err != nil || ns == "" {
		return "default"
	}
	return ns
}
