// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/configsync"
	"github.com/weft-net/weft/internal/controller"
	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
)

// ingressFlags say how the controller serves Ingresses.
type ingressFlags struct {
	enabled     bool
	controllers []string
	config      string
	backend     string
	certificate string
	service     string
	opts        controller.IngressOptions
}

func (f *ingressFlags) add(fs *pflag.FlagSet) {
	fs.BoolVar(&f.enabled, "ingress", false, "serve Ingresses, by one gateway that asks for its configuration as \""+controller.IngressGateway+"\"")
	fs.StringSliceVar(&f.controllers, "ingress-controller", []string{ingress.Controller}, "spec.controller `values` of the IngressClasses that are served; "+ingress.NginxController+" takes over those of ingress-nginx")
	fs.BoolVar(&f.opts.WithoutClass, "ingress-without-class", false, "serve Ingresses that have no class")
	fs.StringVar(&f.config, "ingress-configmap", "", "`NAMESPACE/NAME` of the ConfigMap with ingress-nginx's keys")
	fs.StringVar(&f.backend, "ingress-default-backend", "", "`NAMESPACE/NAME` of the Service that gets what no rule matches, at its first port")
	fs.StringVar(&f.certificate, "ingress-default-certificate", "", "`NAMESPACE/NAME` of the Secret with the certificate of hosts that have none")
	fs.StringVar(&f.service, "ingress-service", "", "`NAMESPACE/NAME` of the Service in front of the gateway, whose addresses Ingresses show")
	fs.StringSliceVar(&f.opts.Addresses, "ingress-address", nil, "`addresses` or host names that Ingresses show in place of the Service's")
	fs.Uint16Var(&f.opts.HTTPPort, "ingress-http-port", 8080, "port that the gateway binds for HTTP")
	fs.Uint16Var(&f.opts.HTTPSPort, "ingress-https-port", 8443, "port that the gateway binds for HTTPS")
	fs.Uint16Var(&f.opts.PublicHTTP, "ingress-public-http-port", 80, "port that clients connect to for HTTP")
	fs.Uint16Var(&f.opts.PublicHTTPS, "ingress-public-https-port", 443, "port that clients connect to for HTTPS")
}

// part is that of Ingresses; nil when they are not served.
func (f *ingressFlags) part(api *rest.Config, server *configsync.Server, record func(model.Event), log *slog.Logger) (*controller.Role, error) {
	if !f.enabled {
		return nil, nil
	}
	opts := f.opts
	opts.Server, opts.Controllers = server, f.controllers
	for _, o := range []struct {
		flag, value string
		into        *model.Name
	}{
		{"ingress-configmap", f.config, &opts.Config}, {"ingress-default-backend", f.backend, &opts.DefaultBackend},
		{"ingress-default-certificate", f.certificate, &opts.DefaultCertificate}, {"ingress-service", f.service, &opts.Service},
	} {
		ns, name, ok := strings.Cut(o.value, "/")
		if o.value != "" && (!ok || ns == "" || name == "") {
			return nil, fmt.Errorf("--%s=%s: want NAMESPACE/NAME", o.flag, o.value)
		}
		*o.into = model.Name{Namespace: ns, Name: name}
	}
	return controller.NewIngresses(api, opts, record, log), nil
}
