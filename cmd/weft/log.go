// SPDX-License-Identifier: Apache-2.0

package main

import (
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
	klog.SetSlogLogger(log.With("from", "client-go"))
	return log, nil
}
