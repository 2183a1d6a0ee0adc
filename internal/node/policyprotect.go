// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/model"
)

const (
	// confirmWithin is how long the API server may take to say what policies there are. A pod must be able to start
	// while there is none: it starts with what is known.
	confirmWithin = 5 * time.Second

	// confirmedFor is how long such a word counts, for many pods may start at once: asked for each, a busy API server
	// would hold them up by tenths of a second.
	confirmedFor = time.Second

	// behindAfter is how long a watch may take to bring what the API server has said already; until then it is asked
	// again every so often, as what it said may be old.
	behindAfter, askAgain = time.Second, 100 * time.Millisecond
)

// confirmation is what the API server said of a namespace's policies.
type confirmation struct {
	asked time.Time
	done  chan struct{} // closed when now and err are there
	now   *model.Delta  // nil: nothing is said
	err   error

	agreed bool // what was known was the same, once: it counts. Guarded by the Policy's mu
}

// confirmer asks the API server.
type confirmer struct {
	read func(ctx context.Context, namespace string) (*model.Delta, error)

	mu     sync.Mutex
	latest map[string]*confirmation // by namespace
}

// ask has the API server asked what policies a namespace has, unless it was at some time since then.
func (c *confirmer) ask(namespace string, since time.Time) *confirmation {
	c.mu.Lock()
	defer c.mu.Unlock()
	if q := c.latest[namespace]; q != nil && !q.asked.Before(since) {
		return q
	}
	now := time.Now()
	for ns, old := range c.latest { // few: those in which pods have just started
		if now.Sub(old.asked) > confirmedFor+confirmWithin {
			delete(c.latest, ns)
		}
	}
	q := &confirmation{asked: now, done: make(chan struct{})}
	if c.read == nil {
		close(q.done)
		return q
	}
	c.latest[namespace] = q
	go func() {
		defer close(q.done)
		ctx, cancel := context.WithTimeout(context.Background(), confirmWithin)
		defer cancel()
		q.now, q.err = c.read(ctx, namespace)
	}()
	return q
}

// Protect puts a pod's policies in force. It returns when they are, which takes that the API has told of the pod, its
// namespace, and every policy that is older than confirmedFor; from the call on nothing passes until then. When ctx ends
// first, the pod stays closed. If the API server can't be asked, what is known counts.
func (p *Policy) Protect(ctx context.Context, l model.LocalPod) error {
	// Each kind is a watch of its own: the pod may be here before the policy that was made before it. Whoever started
	// the pod had it from the API server, so what that says from now on is at least as new as the pod.
	q := p.asking.ask(l.Namespace, time.Now().Add(-confirmedFor))
	answered := q.done
	var again <-chan time.Time
	var differs time.Time // since when
	p.mu.Lock()
	defer p.mu.Unlock()
	pinned := ""
	for {
		if uid := p.uid(l); uid != "" && uid != pinned {
			pinned = uid
			if err := p.enforce(p.pin(l, uid)); err != nil {
				return fmt.Errorf("protect pod %s: %w", l.Name, err)
			}
		}
		missing, kind := p.missing(l, pinned), ""
		if missing == "" {
			missing, kind = p.unconfirmed(l.Namespace, q, answered == nil)
		}
		if missing == "" {
			return nil
		}
		if kind != "" && again == nil {
			again = time.After(askAgain)
			if differs.IsZero() {
				differs = time.Now()
			}
		}
		news := p.news
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			p.mu.Lock()
			return fmt.Errorf("protect pod %s: waited for %s: %w", l.Name, missing, context.Cause(ctx))
		case <-news:
		case <-answered:
			if answered = nil; q.err != nil {
				p.metrics.unconfirmed.Inc()
				p.log.Warn("the API server does not say what policies there are; a pod starts with those that are known", "pod", l.Name.String(), "err", q.err)
			}
		case <-again:
			if again = nil; kind != "" && time.Since(differs) >= behindAfter && p.cfg.Behind != nil {
				differs = time.Time{}
				p.cfg.Behind(kind)
			}
			q = p.asking.ask(l.Namespace, time.Now().Add(-askAgain/2))
			answered = q.done
		}
		p.mu.Lock()
	}
}

// unconfirmed says what of a namespace's policies is not known to be as new as it must be, and, where that differs from
// what the API server said, of which kind it is; "" if nothing is. Callers hold mu.
func (p *Policy) unconfirmed(namespace string, q *confirmation, answered bool) (missing, kind string) {
	switch {
	case !answered:
		return "the API server's word of what policies there are now", ""
	case q.now == nil || q.agreed:
		return "", ""
	}
	kind, name := p.compiler.Behind(namespace, q.now)
	if q.agreed = kind == ""; q.agreed {
		return "", ""
	}
	return fmt.Sprintf("the watch of kind %s to bring %s as the API server has it now", kind, name), kind
}

// missing says what is not known yet of a pod that has to be protected; "" if nothing is.
func (p *Policy) missing(l model.LocalPod, uid string) string {
	pod := p.compiler.Pod(l.Name)
	switch {
	case !p.complete:
		return "the first full picture from the API server"
	case p.stale:
		return "the kernel's table"
	case pod == nil || uid == "" || pod.UID != uid:
		return "the API server's word of the pod"
	case !p.compiler.KnowsNamespace(l.Namespace):
		return "the API server's word of namespace " + l.Namespace
	}
	return ""
}
