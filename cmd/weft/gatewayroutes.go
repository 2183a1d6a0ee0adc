// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/gateway"
	"github.com/weft-net/weft/internal/route"
)

func newGatewayRoutesCommand() *cobra.Command {
	var file, from, method string
	var headers []string
	cmd := &cobra.Command{
		Use:   "routes URL",
		Short: "Say which route and rule wins for a request, and why the others lose",
		Long: `Say which route and rule wins for a request, why the others lose, and which policies apply.

It asks the gateway of the same host or pod for the tables that it serves, as in

    kubectl exec deploy/web-weft -- weft gateway routes http://shop.example.com/cart

or, with --config, reads them from a file.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := url.Parse(args[0])
			if err != nil || u.Host == "" {
				return fmt.Errorf("%q is not a URL such as http://shop.example.com/cart", args[0])
			}
			load := gateway.File{Path: file}.Load
			if file == "" {
				load = func() (*route.Update, error) { return gateway.Fetch(cmd.Context(), from) }
			}
			tables, err := load()
			if err != nil {
				return err
			}
			q := gateway.Question{Method: method, URL: u, Headers: map[string]string{}}
			for _, h := range headers {
				name, value, ok := strings.Cut(h, ":")
				if !ok {
					return fmt.Errorf("--header=%q: want \"Name: value\"", h)
				}
				q.Headers[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value)
			}
			found, err := gateway.Explain(cmd.OutOrStdout(), tables, q)
			if err == nil && !found {
				return exitCode{code: 1}
			}
			return err
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&file, "config", "", "`file` with the tables, YAML or JSON, in place of asking a gateway")
	fs.StringVar(&from, "from", "http://127.0.0.1:9642/config", "`URL` of a gateway's tables")
	fs.StringVarP(&method, "request", "X", "GET", "method")
	fs.StringArrayVarP(&headers, "header", "H", nil, "a header, `\"Name: value\"`; may be repeated")
	return cmd
}
