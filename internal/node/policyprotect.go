// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/model"
)

const (
	// confirmWithin is how long the API server may take to say what policies there are. A pod must be able to start
	// while there is none: it starts with what is known.
	confirmWithin = 5 * time.Second

	// behindAfter is how long a watch may take to bring what the API server has said already.
	behindAfter = time.Second
)

// confirmation is what the API server said of some namespaces' policies.
type confirmation struct {
	namespaces []string
	done       chan struct{} // closed when the rest is there
	now        *model.Delta  // nil: nothing is said
	err        error
}

// confirmer asks the API server, one question at a time: of pods that start together, those that come while it answers
// share the next question, which is put after they came.
type confirmer struct {
	read func(ctx context.Context, namespaces []string) (*model.Delta, error)

	mu   sync.Mutex
	busy bool
	next *confirmation // to be asked when the one under way is answered
}

// ask has the API server asked what policies a namespace has, after the call.
func (c *confirmer) ask(namespace string) *confirmation {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := c.next
	if q == nil {
		q = &confirmation{done: make(chan struct{})}
		c.next = q
	}
	if !slices.Contains(q.namespaces, namespace) {
		q.namespaces = append(q.namespaces, namespace)
	}
	if c.read == nil {
		c.next = nil
		close(q.done)
	} else if !c.busy {
		c.busy = true
		go c.run()
	}
	return q
}

// run asks until nobody waits.
func (c *confirmer) run() {
	for {
		c.mu.Lock()
		q := c.next
		c.next, c.busy = nil, q != nil
		c.mu.Unlock()
		if q == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), confirmWithin)
		q.now, q.err = c.read(ctx, q.namespaces)
		cancel()
		close(q.done)
	}
}

// Protect puts a pod's policies in force. It returns when they are, which takes that the API has told of the pod, its
// namespace, and every policy that was there before the call; from the call on nothing passes until then. When ctx ends
// first, the pod stays closed. If the API server can't be asked, what is known counts.
func (p *Policy) Protect(ctx context.Context, l model.LocalPod) error {
	// Each kind is a watch of its own: the pod may be here before the policy that was made before it. Whoever started
	// the pod had it from the API server, so what that says from now on is at least as new as the pod.
	asked := p.asking.ask(l.Namespace)
	answered := asked.done
	p.mu.Lock()
	defer p.mu.Unlock()
	var known *confirmation
	var late <-chan time.Time
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
			missing, kind = p.unconfirmed(l.Namespace, known)
		}
		if missing == "" {
			return nil
		}
		if kind != "" && late == nil {
			late = time.After(behindAfter)
		}
		news := p.news
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			p.mu.Lock()
			return fmt.Errorf("protect pod %s: waited for %s: %w", l.Name, missing, context.Cause(ctx))
		case <-news:
		case <-answered:
			if known, answered = asked, nil; known.err != nil {
				p.metrics.unconfirmed.Inc()
				p.log.Warn("the API server does not say what policies there are; a pod starts with those that are known", "pod", l.Name.String(), "err", known.err)
			}
		case <-late:
			late = nil
			if p.cfg.Behind != nil {
				p.cfg.Behind(kind)
			}
			asked = p.asking.ask(l.Namespace) // what it said may be old by now
			answered = asked.done
		}
		p.mu.Lock()
	}
}

// unconfirmed says what of a namespace's policies is not known to be as new as it must be, and of which kind it is;
// "" if nothing is.
func (p *Policy) unconfirmed(namespace string, c *confirmation) (missing, kind string) {
	switch {
	case c == nil:
		return "the API server's word of what policies there are now", ""
	case c.now == nil:
		return "", ""
	}
	kind, name := p.compiler.Behind(namespace, c.now)
	if kind == "" {
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
