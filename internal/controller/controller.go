// SPDX-License-Identifier: Apache-2.0

// Package controller is the process that writes to the API for the whole cluster: of its replicas one leads at a
// time, and it feeds each Part what changed. It decides nothing itself; each Part wires one compile package to the
// API.
//
// It imports kube, model, the compile packages, configsync, client-go and the types of the APIs.
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

	// Update takes in what changed. It does not wait for the API: writing is Run's.
	Update(d *model.Delta)

	// Run writes until ctx is done, and then returns without another write.
	Run(ctx context.Context)
}

// Role is what makes a Part for each term of leadership.
type Role struct {
	// Kinds is what the Part's Update needs to see. A replica follows them while it does not lead, too.
	Kinds kube.Kinds

	// Current is the kind of which the Part must not act on an old picture: its first Delta has all that was written
	// before the term, as far as the API still has it. "" is none: a Part whose writes are put right by what comes later.
	Current string

	// Begin makes the Part as a term begins. The Registerer is the term's.
	Begin func(prometheus.Registerer) (Part, error)
}

// Config is what the controller runs with.
type Config struct {
	API *rest.Config

	// Parts are what a leader does.
	Parts []*Role

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
	watcher atomic.Pointer[kube.Watcher]
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
// because the API server is away, is vied for anew; whoever leads next starts from what the API then says, which it has
// followed while it did not lead: nothing needs to be read first. The error is nil after ctx is done.
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
	watching, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	var followed sync.WaitGroup
	defer followed.Wait()
	defer unwatch()
	watched := &withdrawable{Registerer: c.cfg.Metrics}
	defer watched.withdraw()
	w, err := c.follow(watched)
	if err != nil {
		return err
	}
	followed.Go(func() { w.Run(watching) })
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
			if failed = c.lead(led, w); failed != nil {
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

// follow makes the watcher of what a term needs to see.
func (c *Controller) follow(reg prometheus.Registerer) (*kube.Watcher, error) {
	var kinds kube.Kinds
	for _, r := range c.cfg.Parts {
		kinds |= r.Kinds
	}
	w, err := kube.NewWatcher(c.cfg.API, kube.Options{Kinds: kinds, Registerer: reg, Record: c.cfg.Record, Log: c.cfg.Log})
	if err == nil {
		c.watcher.Store(w)
	}
	return w, err
}

// lead runs one term, which begins with all that w has followed.
func (c *Controller) lead(ctx context.Context, w *kube.Watcher) error {
	began := time.Now()
	c.cfg.Log.Info("leading", "lease", c.cfg.Namespace+"/"+c.cfg.Lease, "identity", c.cfg.Identity)
	registry := &withdrawable{Registerer: c.cfg.Metrics}
	c.leading.Set(1)
	defer func() {
		c.synced.Store(false)
		c.leading.Set(0)
		registry.withdraw()
		c.cfg.Log.Info("no longer leading")
	}()
	var parts []Part
	for _, r := range c.cfg.Parts {
		p, err := r.Begin(registry)
		if err != nil {
			return err
		}
		if r.Current != "" {
			p = &late{Part: p, current: func(ctx context.Context) error { return w.Current(ctx, r.Current) }, again: currentAgain, log: c.cfg.Log}
		}
		parts = append(parts, p)
	}
	var running sync.WaitGroup
	defer running.Wait()
	for _, p := range parts {
		running.Go(func() { p.Run(ctx) })
	}
	for {
		d, err := w.Next(ctx)
		if err != nil {
			return nil // ctx is done
		}
		if d.Whole {
			d.Since = began // what came before is an earlier leader's
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

// Ready is nil once the replica knows who leads and has the whole picture, to lead at once if it must.
func (c *Controller) Ready() error {
	switch e, w := c.elector.Load(), c.watcher.Load(); {
	case e == nil || e.GetLeader() == "":
		return errors.New("no leader seen yet: is the API server reachable, and may this ServiceAccount use Leases?")
	case w == nil || w.Age() < 0 || e.IsLeader() && !c.synced.Load():
		return errors.New("the first full picture of the API is not complete")
	}
	return nil
}

// withdrawable takes collectors that are withdrawn together, those of a term when it ends: a replica that does not lead
// has nothing to say about the cluster.
type withdrawable struct {
	prometheus.Registerer
	taken []prometheus.Collector
}

// Register implements prometheus.Registerer.
func (t *withdrawable) Register(c prometheus.Collector) error {
	err := t.Registerer.Register(c)
	if err == nil {
		t.taken = append(t.taken, c)
	}
	return err
}

func (t *withdrawable) withdraw() {
	for _, c := range t.taken {
		t.Unregister(c)
	}
}
