// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// queryFile writes the cluster's mix: 10,000 of its names, A and AAAA, and a quarter that do not exist.
func queryFile(c *cluster, path string) error {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for _, i := range r.Perm(len(c.services))[:min(10000, len(c.services))] {
		s := c.services[i]
		name := s.Name + "." + s.Namespace + ".svc.cluster.local"
		switch i % 8 {
		case 0, 1, 2:
			fmt.Fprintf(&b, "%s A\n", name)
		case 3, 4, 5:
			fmt.Fprintf(&b, "%s AAAA\n", name)
		default:
			fmt.Fprintf(&b, "missing-%s A\n", name)
		}
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// outsideFile writes names that are forwarded, and then cached.
func outsideFile(names int, path string) error {
	var b bytes.Buffer
	for i := range names {
		fmt.Fprintf(&b, "host-%d.example %s\n", i, []string{"A", "AAAA"}[i%2])
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// result is one server under one load.
type result struct {
	QueriesPerSecond float64 `json:"queriesPerSecond"`
	CPUMicros        float64 `json:"cpuMicrosPerQuery"`
	KernelMicros     float64 `json:"ofThatInKernelMicros"`
	Lost             int     `json:"lost"`
	Completed        int     `json:"completed"`
	P50Micros        float64 `json:"p50Micros"`
	P99Micros        float64 `json:"p99Micros"`
	QuietP99Micros   float64 `json:"p99MicrosOfQuietestRound"`
}

var (
	reCompleted = regexp.MustCompile(`Queries completed:\s+(\d+)`)
	reLost      = regexp.MustCompile(`Queries lost:\s+(\d+)`)
	reRate      = regexp.MustCompile(`Queries per second:\s+([\d.]+)`)
)

// load runs dnsperf against a server for some seconds at full speed, for CPU and throughput; then at a rate that none
// of the servers is busy with, for latency.
func load(s *server, core int, mode, file string, seconds int, rate int) (result, error) {
	base := []string{"-c", strconv.Itoa(core), "dnsperf", "-s", "127.0.0.1", "-p", strconv.Itoa(s.port), "-d", file, "-m", mode}
	if mode == "tcp" {
		base = append(base, "-c", "16")
	} else {
		base = append(base, "-c", "8")
	}
	// Once through all names first: caches are warm after it, connections not counted.
	if _, err := dnsperf(append(base, "-n", "1")); err != nil {
		return result{}, err
	}
	var res result
	var before, beforeKernel, after, afterKernel time.Duration
	var out []byte
	// Queries that are lost stand still for dnsperf: with many of them it measures its own waiting. Again, then.
	for try := 0; try == 0 || res.Lost*100 > res.Completed; try++ {
		if try == 3 {
			return result{}, fmt.Errorf("%d of %d queries lost, three times: the machine is too busy to measure", res.Lost, res.Completed+res.Lost)
		}
		var err error
		if before, beforeKernel, err = s.cpu(); err != nil {
			return result{}, err
		}
		if out, err = dnsperf(append(base, "-l", strconv.Itoa(seconds), "-q", "200")); err != nil {
			return result{}, err
		}
		if after, afterKernel, err = s.cpu(); err != nil {
			return result{}, err
		}
		res.Completed = int(number(reCompleted, out))
		res.Lost = int(number(reLost, out))
	}
	res.QueriesPerSecond = number(reRate, out)
	res.CPUMicros = float64(after-before) / float64(time.Microsecond) / float64(res.Completed)

	res.KernelMicros = float64(afterKernel-beforeKernel) / float64(time.Microsecond) / float64(res.Completed)

	out, err := dnsperf(append(base, "-l", "4", "-Q", strconv.Itoa(rate), "-v"))
	if err != nil {
		return result{}, err
	}
	var took []float64
	sc := bufio.NewScanner(bytes.NewReader(out))
	for sc.Scan() {
		// "> NOERROR name type 0.000123"
		if f := strings.Fields(sc.Text()); len(f) >= 4 && f[0] == ">" {
			if v, err := strconv.ParseFloat(f[len(f)-1], 64); err == nil {
				took = append(took, v*1e6)
			}
		}
	}
	if len(took) == 0 {
		return result{}, fmt.Errorf("dnsperf -v told no latencies:\n%.500s", out)
	}
	slices.Sort(took)
	res.P50Micros = took[len(took)/2]
	res.P99Micros = took[len(took)*99/100]
	return res, nil
}

func dnsperf(args []string) ([]byte, error) {
	out, err := exec.Command("taskset", args...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("dnsperf: %w:\n%.2000s", err, out)
	}
	return out, nil
}

func number(re *regexp.Regexp, out []byte) float64 {
	m := re.FindSubmatch(out)
	if m == nil {
		return 0
	}
	v, _ := strconv.ParseFloat(string(m[1]), 64)
	return v
}

// lookup asks for one A record and returns the address, or "" for none.
func lookup(port int, name string) (string, error) {
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return "", err
	}
	defer c.Close()
	return ask(c, name)
}

func ask(c net.Conn, name string) (string, error) {
	msg := []byte{1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(name, ".") {
		msg = append(append(msg, byte(len(label))), label...)
	}
	msg = append(msg, 0, 0, 1, 0, 1)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(msg); err != nil {
		return "", err
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	if err != nil {
		return "", err
	}
	if n < len(msg) || binary.BigEndian.Uint16(buf[6:]) == 0 {
		return "", nil
	}
	// The first record's address is its last four octets; CoreDNS repeats the name in full.
	at := len(msg)
	if buf[at] >= 0xc0 {
		at += 2
	} else {
		for buf[at] != 0 {
			at += 1 + int(buf[at])
		}
		at++
	}
	if at+14 > n || binary.BigEndian.Uint16(buf[at+8:]) != 4 {
		return "", nil
	}
	return netip.AddrFrom4([4]byte(buf[at+10 : at+14])).String(), nil
}
