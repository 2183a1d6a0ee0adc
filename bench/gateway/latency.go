// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Latency is that of small requests which come when they are due, whether the ones before are answered or not. The contenders
// take short turns, and what counts is the median of the turns' percentiles: what else a machine does sets the highest
// percentile of many a turn, and of all turns together, but not of most.
const (
	latencyCase  = "http1-latency"
	latencyRate  = 2000 // requests a second
	latencyConns = 64   // to each contender
	latencyTurn  = time.Second
	latencyWarm  = 100 * time.Millisecond // of each turn, not counted: the other contenders have had the caches
)

// percentiles are what is told of it, by the row in the report.
var percentiles = map[string]float64{"http1-p50": 0.50, "http1-p90": 0.90, "http1-p95": 0.95, "http1-p98": 0.98, "http1-p99": 0.99}

// latencies has each contender take turns, for d in all. It tells of each turn how long the requests took, in microseconds
// from when they were due, in order.
func latencies(ctx context.Context, d time.Duration, tell func(contender string, took []int64)) error {
	clients := map[string]*steady{}
	for _, name := range contenders {
		s, err := newSteady(ctx, ports(name).plain)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer s.close()
		clients[name] = s
	}
	for range d / latencyTurn {
		for _, name := range contenders {
			took, err := clients[name].turn(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			slices.Sort(took)
			tell(name, took)
		}
	}
	return nil
}

// percentile is of a list in order that is not empty.
func percentile(took []int64, share float64) float64 {
	return float64(took[min(int(float64(len(took))*share), len(took)-1)])
}

// steady is a client with kept connections.
type steady struct {
	conns []net.Conn
	read  []*bufio.Reader
}

func newSteady(ctx context.Context, port int) (*steady, error) {
	s := &steady{}
	for range latencyConns {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			s.close()
			return nil, err
		}
		s.conns, s.read = append(s.conns, c), append(s.read, bufio.NewReader(c))
	}
	return s, nil
}

func (s *steady) close() {
	for _, c := range s.conns {
		c.Close()
	}
}

// turn sends requests at the rate for as long as a turn is, and waits for all answers.
func (s *steady) turn(ctx context.Context) ([]int64, error) {
	due := make(chan time.Time, latencyRate) // more than a turn has: who sends never waits
	var mu sync.Mutex
	var took []int64
	var failed error
	var all sync.WaitGroup
	begin := time.Now()
	for i, c := range s.conns {
		_ = c.SetDeadline(time.Now().Add(latencyTurn + 10*time.Second))
		all.Go(func() {
			for at := range due {
				err := ask(c, s.read[i])
				us := time.Since(at).Microseconds()
				mu.Lock()
				if failed = errors.Join(failed, err); at.Sub(begin) > latencyWarm {
					took = append(took, us)
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n := 0; ctx.Err() == nil && time.Since(begin) < latencyTurn; <-tick.C {
		for ; n < min(int(time.Since(begin).Seconds()*latencyRate), cap(due)); n++ {
			due <- time.Now()
		}
	}
	close(due)
	all.Wait()
	return took, errors.Join(failed, ctx.Err())
}

// ask sends one small request and reads the answer.
func ask(c net.Conn, r *bufio.Reader) error {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
