// SPDX-License-Identifier: Apache-2.0

// Package otlp sends a gateway's spans to an OpenTelemetry collector: OTLP over HTTP, encoded as JSON. It may import
// proxy, whose Tracer it is, and the standard library.
package otlp

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/internal/proxy"
)

// Bounds of what waits to be sent, and of one message.
const (
	queued  = 8192
	batch   = 512
	linger  = time.Second // a span waits no longer for others
	timeout = 10 * time.Second
)

// Exporter collects spans and sends them. What can't be sent is lost and counted: no request waits for its span.
type Exporter struct {
	url      string
	resource []attribute
	client   *http.Client
	log      *slog.Logger
	spans    chan *proxy.Span
	lost     atomic.Uint64
	stop     context.CancelFunc
	done     sync.WaitGroup
}

// New makes an exporter to a collector, such as "http://collector:4318"; "/v1/traces" is added to a URL without path.
// resource are attributes of all spans beside service.name. Close sends what is left.
func New(endpoint string, resource map[string]string, log *slog.Logger) (*Exporter, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%q is not a URL such as http://collector:4318", endpoint)
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = "/v1/traces"
	}
	ctx, stop := context.WithCancel(context.Background())
	e := &Exporter{url: u.String(), client: &http.Client{Timeout: timeout}, log: log, spans: make(chan *proxy.Span, queued), stop: stop}
	e.resource = append(e.resource, text("service.name", "weft-gateway"))
	for k, v := range resource {
		e.resource = append(e.resource, text(k, v))
	}
	e.done.Go(func() { e.run(ctx) })
	return e, nil
}

// Trace implements proxy.Tracer.
func (e *Exporter) Trace(s *proxy.Span) {
	select {
	case e.spans <- s:
	default:
		e.lost.Add(1)
	}
}

// Lost is how many spans could not be sent.
func (e *Exporter) Lost() uint64 { return e.lost.Load() }

// Close sends what has come so far, once, and ends the exporter.
func (e *Exporter) Close() {
	e.stop()
	e.done.Wait()
	e.client.CloseIdleConnections()
}

func (e *Exporter) run(ctx context.Context) {
	var all []*proxy.Span
	tick := time.NewTicker(linger)
	defer tick.Stop()
	failing := false
	send := func() {
		if len(all) == 0 {
			return
		}
		err := e.send(all)
		if err != nil {
			e.lost.Add(uint64(len(all)))
			if !failing { // once for each outage
				e.log.Warn("spans can't be sent", "to", e.url, "error", err)
			}
		} else if failing {
			e.log.Info("spans are sent again", "to", e.url, "lost", e.lost.Load())
		}
		failing = err != nil
		all = all[:0]
	}
	for {
		select {
		case s := <-e.spans:
			if all = append(all, s); len(all) >= batch {
				send()
			}
		case <-tick.C:
			send()
		case <-ctx.Done():
			for {
				select {
				case s := <-e.spans:
					all = append(all, s)
				default:
					send()
					return
				}
			}
		}
	}
}

func (e *Exporter) send(spans []*proxy.Span) error {
	body, err := json.Marshal(e.message(spans))
	if err != nil {
		return err
	}
	resp, err := e.client.Post(e.url, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the collector answers %s", resp.Status)
	}
	return nil
}

// The parts of an ExportTraceServiceRequest that are needed, as OTLP's JSON has them: identifiers in hexadecimal, 64-bit
// numbers as strings.
type (
	request struct {
		ResourceSpans []resourceSpans `json:"resourceSpans"`
	}
	resourceSpans struct {
		Resource   resource     `json:"resource"`
		ScopeSpans []scopeSpans `json:"scopeSpans"`
	}
	resource struct {
		Attributes []attribute `json:"attributes"`
	}
	scopeSpans struct {
		Scope scope      `json:"scope"`
		Spans []otlpSpan `json:"spans"`
	}
	scope struct {
		Name string `json:"name"`
	}
	otlpSpan struct {
		TraceID      string      `json:"traceId"`
		SpanID       string      `json:"spanId"`
		ParentSpanID string      `json:"parentSpanId,omitempty"`
		Name         string      `json:"name"`
		Kind         int         `json:"kind"`
		Start        string      `json:"startTimeUnixNano"`
		End          string      `json:"endTimeUnixNano"`
		Attributes   []attribute `json:"attributes"`
		Status       status      `json:"status,omitzero"`
	}
	status struct {
		Code    int    `json:"code,omitempty"`
		Message string `json:"message,omitempty"`
	}
	attribute struct {
		Key   string `json:"key"`
		Value value  `json:"value"`
	}
	value struct {
		String string `json:"stringValue,omitempty"`
		Int    string `json:"intValue,omitempty"`
	}
)

const (
	kindServer  = 2
	statusError = 2
)

func text(k, v string) attribute       { return attribute{k, value{String: v}} }
func number(k string, v int) attribute { return attribute{k, value{Int: strconv.Itoa(v)}} }
func nanoseconds(t time.Time) string   { return strconv.FormatInt(t.UnixNano(), 10) }

func (e *Exporter) message(spans []*proxy.Span) request {
	out := make([]otlpSpan, 0, len(spans))
	for _, s := range spans {
		o := otlpSpan{
			TraceID: hex.EncodeToString(s.Trace[:]), SpanID: hex.EncodeToString(s.ID[:]), Name: s.Method, Kind: kindServer,
			Start: nanoseconds(s.Began), End: nanoseconds(s.Ended),
		}
		if s.Parent != [8]byte{} {
			o.ParentSpanID = hex.EncodeToString(s.Parent[:])
		}
		if s.Route != "" { // few names: a path would make one for each request
			o.Name += " " + s.Route
		}
		add := func(k, v string) {
			if v != "" {
				o.Attributes = append(o.Attributes, text(k, strings.ToValidUTF8(v, "\uFFFD")))
			}
		}
		add("http.request.method", s.Method)
		add("url.scheme", s.Scheme)
		add("server.address", s.Host)
		add("url.path", s.Path)
		add("network.protocol.version", s.Protocol)
		add("client.address", s.Client)
		add("weft.route", s.Route)
		add("weft.rule", s.Rule)
		add("weft.backend", s.Backend)
		add("weft.endpoint", s.Endpoint)
		add("error.type", s.Error)
		if s.Status > 0 {
			o.Attributes = append(o.Attributes, number("http.response.status_code", s.Status))
		}
		if s.Attempts > 1 {
			o.Attributes = append(o.Attributes, number("http.request.resend_count", s.Attempts-1))
		}
		if s.Status >= 500 || s.Status == 0 {
			o.Status = status{statusError, strings.ToValidUTF8(s.Error, "\uFFFD")}
		}
		out = append(out, o)
	}
	return request{[]resourceSpans{{resource{e.resource}, []scopeSpans{{scope{"github.com/weft-net/weft"}, out}}}}}
}
