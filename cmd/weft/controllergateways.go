// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/configsync"
	"github.com/weft-net/weft/internal/controller"
	"github.com/weft-net/weft/internal/model"
)

// gatewayFlags say how the controller serves gateways.
type gatewayFlags struct {
	enabled bool
	listen  string
	class   string
	clients map[string]string
	pods    controller.PodOptions
	ingress ingressFlags
}

func (f *gatewayFlags) add(fs *pflag.FlagSet) {
	f.ingress.add(fs)
	fs.BoolVar(&f.enabled, "gateway-api", false, "serve Gateway API; where it is not installed yet, as soon as it is")
	fs.StringVar(&f.class, "gateway-class", "weft", "`name` of the GatewayClass that is made where there is none; empty for none")
	fs.StringVar(&f.listen, "config-bind-address", ":9643", "`address` at which the leader offers gateways their configuration")
	fs.StringToStringVar(&f.clients, "config-client", nil, "`GATEWAY=SECRET`: a Secret to keep, in the controller's namespace, with the identity of a gateway that no Gateway object has; may be repeated")
	fs.StringVar(&f.pods.Image, "gateway-image", "", "`image` of the gateways' pods: the controller's own")
	fs.StringVar(&f.pods.PullPolicy, "gateway-image-pull-policy", "IfNotPresent", "imagePullPolicy of the gateways' pods")
	fs.StringSliceVar(&f.pods.PullSecrets, "gateway-image-pull-secret", nil, "imagePullSecrets of the gateways' pods, looked for in each Gateway's namespace")
	fs.StringVar(&f.pods.Server, "gateway-controller", "", "`HOST:PORT` at which the gateways' pods find the controllers")
}

// parts are those that gateways need, each of them or for an Ingress gateway alone.
func (f *gatewayFlags) parts(api *rest.Config, namespace string, record func(model.Event), log *slog.Logger) ([]*controller.Role, error) {
	if !f.enabled && !f.ingress.enabled && len(f.clients) == 0 {
		return nil, nil
	}
	server, identities := configsync.NewServer(log), &controller.Identities{}
	clients := make(map[string]model.Name, len(f.clients))
	for gateway, secret := range f.clients {
		clients[gateway] = model.Name{Namespace: namespace, Name: secret}
	}
	parts := []*controller.Role{controller.NewConfigSync(api, controller.SyncOptions{
		Server: server, Identities: identities, Namespace: namespace, Listen: f.listen, Clients: clients,
	}, log)}
	if f.enabled {
		parts = append(parts, controller.NewGateways(api, controller.GatewayOptions{
			Server: server, Identities: identities, Pods: f.pods, Class: f.class,
		}, record, log))
	}
	ingresses, err := f.ingress.part(api, server, record, log)
	if ingresses != nil {
		parts = append(parts, ingresses)
	}
	return parts, err
}
