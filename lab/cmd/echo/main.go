// SPDX-License-Identifier: Apache-2.0

// Command echo is the lab's test server and client: a server that answers every request with what it received, over
// each protocol that weft forwards, and a client that counts what comes back. It imports no Kubernetes.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `echo: answer with what was received

  echo [serve]            serve until SIGTERM, then for $DRAIN more (2s)
  echo get [flags] URL    send requests, count the answers; see echo get --help
  echo resolve NAME       look a name up as musl does, and count; see echo resolve --help
  echo stop               have every "echo get" and "echo resolve" of this container print its summary and end

Served, with the port's environment variable and default:

  HTTP_PORT   8080   HTTP/1.1, HTTP/2 without TLS (h2c), WebSocket, gRPC (any method)
  HTTPS_PORT  8443   the same over TLS, with $HTTPS_CERT_DIR/tls.crt and tls.key, or a certificate made at start
  TCP_PORT    9000   a line with the facts, then every byte sent back
  UDP_PORT    9000   a datagram with the facts for every datagram

An empty variable serves nothing there. Answers carry $POD_NAME, $POD_NAMESPACE, $POD_IP and $NODE_NAME.

  /               what was received, as JSON; with $CALLS=name=URL,... also what those answered
  /status/CODE    that status
  /delay/TIME     the answer after a time such as 300ms
  /bytes/N        N bytes
  /readyz         200, or 503 after POST /readyz?ready=false
  /healthz        200

Each ?header=NAME:VALUE is a header of the answer.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	args := os.Args[1:]
	var err error
	switch {
	case len(args) == 0 || args[0] == "serve":
		err = serve(ctx, configFromEnv())
	case args[0] == "get":
		err = get(ctx, args[1:], os.Stdout)
	case args[0] == "resolve":
		err = resolve(ctx, args[1:], os.Stdout)
	case args[0] == "stop":
		err = stopClients()
	case args[0] == "help" || args[0] == "--help" || args[0] == "-h":
		fmt.Print(usage)
	default:
		err = fmt.Errorf("unknown command %q; see echo --help", args[0])
	}
	if err != nil {
		if !errors.Is(err, errFailed) {
			fmt.Fprintln(os.Stderr, "echo:", err)
		}
		os.Exit(1)
	}
}
