// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
)

// logFlags choose how a long-running process logs.
type logFlags struct {
	level  string
	format string
}

func (f *logFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.level, "log-level", "info", "least level to log: debug, info, warn or error")
	fs.StringVar(&f.format, "log-format", "text", "text or json")
}

// setup makes the chosen logger the default one, for client-go's messages too.
func (f *logFlags) setup() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return nil, fmt.Errorf("--log-level=%s: want debug, info, warn or error", f.level)
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler
	switch f.format {
	case "text":
		h = slog.NewTextHandler(os.Stderr, opts)
	case "json":
		h = slog.NewJSONHandler(os.Stderr, opts)
	default:
		return nil, fmt.Errorf("--log-format=%s: want text or json", f.format)
	}
	log := slog.New(h)
	slog.SetDefault(log)
	klog.SetSlogLogger(slog.New(withoutReflectors{h}).With("from", "client-go"))
	return log, nil
}

// withoutReflectors leaves out what client-go's reflectors say of failures: package kube says it, once.
type withoutReflectors struct{ slog.Handler }

func (h withoutReflectors) Handle(ctx context.Context, r slog.Record) error {
	reflector := false
	r.Attrs(func(a slog.Attr) bool {
		reflector = a.Key == "reflector"
		return !reflector
	})
	if reflector {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h withoutReflectors) WithAttrs(as []slog.Attr) slog.Handler {
	return withoutReflectors{h.Handler.WithAttrs(as)}
}

func (h withoutReflectors) WithGroup(name string) slog.Handler {
	return withoutReflectors{h.Handler.WithGroup(name)}
}
