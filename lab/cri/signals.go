// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Real-time signals as a C library counts them: the kernel's first two are its own.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// signalNumber returns the number of a signal by the name that images ("SIGQUIT", "quit", "3") and the CRI
// ("SIGRTMIN+2" as SIGRTMINPLUS2) use.
func signalNumber(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, fmt.Errorf("stop signal %d is not between 1 and %d", n, sigRTMax)
		}
		return n, nil
	}
	upper := strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(strings.ToUpper(name))
	if !strings.HasPrefix(upper, "SIG") {
		upper = "SIG" + upper
	}
	for _, base := range []struct {
		prefix string
		number int
	}{{"SIGRTMIN", sigRTMin}, {"SIGRTMAX", sigRTMax}} {
		rest, ok := strings.CutPrefix(upper, base.prefix)
		if !ok {
			continue
		}
		if rest == "" {
			return base.number, nil
		}
		offset, err := strconv.Atoi(rest)
		if n := base.number + offset; err == nil && n >= sigRTMin && n <= sigRTMax {
			return n, nil
		}
		return 0, fmt.Errorf("unknown stop signal %q", name)
	}
	switch upper { // second names
	case "SIGCLD":
		upper = "SIGCHLD"
	case "SIGPOLL":
		upper = "SIGIO"
	case "SIGIOT":
		upper = "SIGABRT"
	}
	if n := unix.SignalNum(upper); n != 0 {
		return int(n), nil
	}
	return 0, fmt.Errorf("unknown stop signal %q", name)
}

// stopSignal is that of the container's lifecycle if it has one, or else the image's, or else SIGTERM.
func stopSignal(config *runtimeapi.ContainerConfig, image string) (int, error) {
	if s := config.StopSignal; s != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return signalNumber(strings.TrimPrefix(s.String(), "SIGNAL_"))
	}
	if image != "" {
		return signalNumber(image)
	}
	return int(unix.SIGTERM), nil
}

// signalOfNumber is the CRI's name of a signal.
func signalOfNumber(n int) runtimeapi.Signal {
	name := unix.SignalName(unix.Signal(n))
	switch {
	case n == sigRTMin:
		name = "SIGRTMIN"
	case n == sigRTMax:
		name = "SIGRTMAX"
	case n > sigRTMin && n <= sigRTMin+15:
		name = fmt.Sprintf("SIGRTMINPLUS%d", n-sigRTMin)
	case n > sigRTMin+15 && n < sigRTMax:
		name = fmt.Sprintf("SIGRTMAXMINUS%d", sigRTMax-n)
	}
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+name])
}
