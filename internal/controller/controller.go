// SPDX-License-Identifier: Apache-2.0

// Package controller is the process that writes to the API for the whole cluster: of its replicas one leads at a
// time, and it feeds each Part what changed. It decides nothing itself; each Part wires one compile package to the
// API.
//
// It imports kube, model, the compile packages and client-go.
package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// Part is one concern of the controller. One value lives for one term of leadership: it begins with the whole state
// and nothing remembered.
type Part interface {
	// Name is a short word for logs.
	Name() string

	// Kinds is what Update needs to see.
	Kinds() kube.Kinds

	// Update takes in what changed. It does not wait for the API: writing is Run's.
	Update(d *model.Delta)

	// Run writes until ctx is done, and then returns without another write.
	Run(ctx context.Context)
}

// Config is what the controller runs with.
type Config struct {
	API *rest.Config

	// Parts makes the Parts of a term. The Registerer is the term's.
	Parts []func(prometheus.Registerer) (Part, error)

	// Record writes Events; see kube.NewRecorder.
	Record func(model.Event)

	// Identity tells the replicas apart, Namespace and Lease name the Lease that they vie for.
	Identity, Namespace, Lease string

	// LeaseDuration is how long after its last sign of life a leader may be replaced; RenewDeadline how long it
	// goes on without being able to renew; RetryPeriod how often it renews. 0 is 5 s, 4 s and 0.5 s: gateways get no
	// changes while a leader that was killed has the Lease still. An attempt to renew may take half of RenewDeadline, so
	// that an API server which is slow, or a request that is lost, does not end a term.
	LeaseDuration, RenewDeadline, RetryPeriod time.Duration

	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Controller is one replica.
type Controller struct {
	cfg     Config
	elector atomic.Pointer[leaderelection.LeaderElector]
	leading prometheus.Gauge
	synced  atomic.Bool // the term's Parts have the first full picture
}

// New prepares a replica. Run starts it.
func New(cfg Config) (*Controller, error) {
	if cfg.LeaseDuration == 0 {
		cfg.LeaseDuration, cfg.RenewDeadline, cfg.RetryPeriod = 5*time.Second, 4*time.Second, 500*time.Millisecond
	}
	c := &Controller{cfg: cfg, leading: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "weft_controller_leader", Help: "1 in the replica that leads, 0 in the others.",
	})}
	return c, cfg.Metrics.Register(c.leading)
}

// Run vies for leadership and works while it has it, until ctx is done. Leadership lost, to another replica or
// because the API server is away, is vied for anew; whoever leads next starts from what the API then says. The
// error is nil after ctx is done.
func (c *Controller) Run(ctx context.Context) error {
	api := rest.CopyConfig(c.cfg.API)
	api.Timeout = c.cfg.RenewDeadline / 2
	client, err := kubernetes.NewForConfig(api)
	if err != nil {
		return fmt.Errorf("API client: %w", err)
	}
	for ctx.Err() == nil {
		if err := c.vie(ctx, client); err != nil {
			return err
		}
	}
	return nil
}

// vie waits for leadership and returns when it has ended, with no write of the term under way any more.
func (c *Controller) vie(ctx context.Context, client kubernetes.Interface) error {
	// The elector gives the Lease back when its context ends, so that the next leader need not wait. Its context
	// outlives ctx until the term has stopped writing: two leaders never write at once.
	electing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	leading := make(chan context.Context, 1)
	var term sync.WaitGroup
	var failed error
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: c.cfg.Namespace, Name: c.cfg.Lease},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: c.cfg.Identity},
		},
		Name:          c.cfg.Lease,
		LeaseDuration: c.cfg.LeaseDuration, RenewDeadline: c.cfg.RenewDeadline, RetryPeriod: c.cfg.RetryPeriod,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) { leading <- ctx },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("leader election: %w", err)
	}
	c.elector.Store(elector)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		elector.Run(electing)
	}()
	select {
	case led := <-leading:
		led, cancel := context.WithCancel(led)
		term.Go(func() {
			defer cancel()
			if failed = c.lead(led); failed != nil {
				stop()
			}
		})
		select {
		case <-ctx.Done():
		case <-led.Done():
		}
		cancel()
	case <-ctx.Done():
	case <-ended:
	}
	term.Wait()
	stop()
	<-ended
	return failed
}

// lead runs one term.
func (c *Controller) lead(ctx context.Context) error {
	c.cfg.Log.Info("leading", "lease", c.cfg.Namespace+"/"+c.cfg.Lease, "identity", c.cfg.Identity)
	registry := &termRegistry{Registerer: c.cfg.Metrics}
	c.leading.Set(1)
	defer func() {
		c.synced.Store(false)
		c.leading.Set(0)
		registry.withdraw()
		c.cfg.Log.Info("no longer leading")
	}()
	var parts []Part
	var kinds kube.Kinds
	for _, newPart := range c.cfg.Parts {
		p, err := newPart(registry)
		if err != nil {
			return err
		}
		parts = append(parts, p)
		kinds |= p.Kinds()
	}
	w, err := kube.NewWatcher(c.cfg.API, kube.Options{Kinds: kinds, Registerer: registry, Record: c.cfg.Record, Log: c.cfg.Log})
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { w.Run(ctx) })
	for _, p := range parts {
		running.Go(func() { p.Run(ctx) })
	}
	for {
		d, err := w.Next(ctx)
		if err != nil {
			return nil // ctx is done
		}
		for _, p := range parts {
			p.Update(d)
		}
		c.synced.Store(true)
	}
}

// Live is nil unless the replica leads, can't renew its Lease, and writes all the same.
func (c *Controller) Live() error {
	if e := c.elector.Load(); e != nil {
		return e.Check(c.cfg.LeaseDuration)
	}
	return nil
}

// Ready is nil once the replica knows who leads and, if it is itself, has the whole picture.
func (c *Controller) Ready() error {
	switch e := c.elector.Load(); {
	case e == nil || e.GetLeader() == "":
		return errors.New("no leader seen yet: is the API server reachable, and may this ServiceAccount use Leases?")
	case e.IsLeader() && !c.synced.Load():
		return errors.New("leading, but the first full picture of the API is not complete")
	}
	return nil
}

// termRegistry takes the collectors of one term, to be withdrawn when it ends: a replica that does not lead has
// nothing to say about the cluster.
type termRegistry struct {
	prometheus.Registerer
	taken []prometheus.Collector
}

// Register implements prometheus.Registerer.
func (t *termRegistry) Register(c prometheus.Collector) error {
	err := t.Registerer.Register(c)
	if err == nil {
		t.taken = append(t.taken, c)
	}
	return err
}

func (t *termRegistry) withdraw() {
	for _, c := range t.taken {
		t.Unregister(c)
	}
}
