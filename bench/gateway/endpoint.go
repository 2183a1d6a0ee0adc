// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
)

// serveEndpoints is what the proxies forward to where nginx can't be it: gRPC's trailers and streams, WebSocket, TCP.
func serveEndpoints() {
	grpc := &http.Server{Handler: http.HandlerFunc(echoMessages), Protocols: &http.Protocols{}}
	grpc.Protocols.SetUnencryptedHTTP2(true)
	fail := make(chan error)
	go func() { fail <- echoEach(portTCP, nil) }()
	go func() { fail <- echoEach(portWS, switchProtocols) }()
	go func() {
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(portGRPC))
		if err == nil {
			err = grpc.Serve(l)
		}
		fail <- err
	}()
	fmt.Fprintln(os.Stderr, <-fail)
	os.Exit(1)
}

// echoMessages is a gRPC method: what comes goes back at once, and the status is OK.
func echoMessages(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	rc := http.NewResponseController(w)
	buf := make([]byte, 4096)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			_, _ = w.Write(buf[:n])
			if err == nil && r.URL.Path == "/grpc/stream" {
				_ = rc.Flush()
			}
		}
		if err != nil {
			break
		}
	}
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
}

// echoEach answers each connection with what it says, after hello.
func echoEach(port int, hello func(c net.Conn) (io.Reader, error)) error {
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			var src io.Reader = c
			if hello != nil {
				if src, err = hello(c); err != nil {
					return
				}
			}
			buf := make([]byte, 16<<10)
			for {
				n, err := src.Read(buf)
				if err != nil {
					return
				}
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}

func switchProtocols(c net.Conn) (io.Reader, error) {
	r := bufio.NewReader(c)
	if _, err := http.ReadRequest(r); err != nil {
		return nil, err
	}
	_, err := io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
	return r, err
}
