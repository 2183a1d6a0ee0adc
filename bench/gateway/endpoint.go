// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// serveEndpoints is what the proxies forward to where nginx can't be it: gRPC's trailers and streams, WebSocket, TCP.
func serveEndpoints() {
	fail := make(chan error)
	go func() { fail <- echoEach(portTCP, nil) }()
	go func() { fail <- echoEach(portWS, switchProtocols) }()
	go func() { fail <- each(portGRPC, echoCalls) }()
	go func() { fail <- each(portUp, takeBodies) }()
	fmt.Fprintln(os.Stderr, <-fail)
	os.Exit(1)
}

// Frames of HTTP/2 (RFC 9113) that the endpoint sees and says.
const (
	frameData, frameHeaders, frameSettings, framePing, frameWindow = 0, 1, 4, 6, 8
	flagEnd, flagAck, flagEndHeaders                               = 1, 1, 4
)

// echoCalls answers gRPC calls of any method: what comes goes back at once, and the status is OK. It reads no head,
// since the answer is always the same, so it is quick enough for one core to keep a proxy's busy.
func echoCalls(c net.Conn) {
	defer c.Close()
	r, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriterSize(c, 64<<10)
	frame := func(kind, flags byte, stream uint32, payload []byte) {
		head := binary.BigEndian.AppendUint32([]byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}, stream)
		_, _ = w.Write(head) // the flush tells of errors
		_, _ = w.Write(payload)
	}
	// :status 200 and content-type, then grpc-status; the names are literals but for content-type's.
	answer := append([]byte{0x88, 0x0f, 16, 16}, "application/grpc"...)
	trailers := append(append([]byte{0, 11}, "grpc-status"...), 1, '0')
	if _, err := r.Discard(24); err != nil { // the preface
		return
	}
	frame(frameSettings, 0, 0, []byte{0, 3, 0, 0, 4, 0}) // 1024 streams
	answered := map[uint32]bool{}
	taken := uint32(0)
	var head [9]byte
	buf := make([]byte, 1<<14)
	for {
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		n, kind, flags, stream := int(head[0])<<16|int(head[1])<<8|int(head[2]), head[3], head[4], binary.BigEndian.Uint32(head[5:])
		if n > len(buf) {
			return
		}
		payload := buf[:n]
		if _, err := io.ReadFull(r, payload); err != nil {
			return
		}
		switch kind {
		case frameSettings:
			if flags&flagAck == 0 {
				frame(frameSettings, flagAck, 0, nil)
			}
		case framePing:
			if flags&flagAck == 0 {
				frame(framePing, flagAck, 0, payload)
			}
		case frameHeaders, frameData:
			if !answered[stream] && (kind == frameData || flags&flagEnd != 0) {
				answered[stream] = true
				frame(frameHeaders, flagEndHeaders, stream, answer)
			}
			if kind == frameData && n > 0 {
				frame(frameData, 0, stream, payload)
				if taken += uint32(n); taken > 1<<14 {
					frame(frameWindow, 0, 0, binary.BigEndian.AppendUint32(nil, taken))
					taken = 0
				}
				if flags&flagEnd == 0 {
					frame(frameWindow, 0, stream, binary.BigEndian.AppendUint32(nil, uint32(n)))
				}
			}
			if flags&flagEnd != 0 {
				delete(answered, stream)
				frame(frameHeaders, flagEnd|flagEndHeaders, stream, trailers)
			}
		}
	}
}

// takeBodies answers requests when their bodies, whose lengths are told, have come.
func takeBodies(c net.Conn) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 128<<10)
	for {
		n := 0
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			name, value, _ := strings.Cut(string(line), ":")
			if strings.EqualFold(name, "content-length") {
				n, _ = strconv.Atoi(strings.TrimSpace(value))
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := r.Discard(n); err != nil {
			return
		}
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
			return
		}
	}
}

// each serves the connections of a port.
func each(port int, serve func(net.Conn)) error {
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go serve(c)
	}
}

// echoEach answers each connection with what it says, after hello.
func echoEach(port int, hello func(c net.Conn) (io.Reader, error)) error {
	return each(port, func(c net.Conn) {
		defer c.Close()
		var src io.Reader = c
		if hello != nil {
			var err error
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
	})
}

func switchProtocols(c net.Conn) (io.Reader, error) {
	r := bufio.NewReader(c)
	if _, err := http.ReadRequest(r); err != nil {
		return nil, err
	}
	_, err := io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
	return r, err
}
