// SPDX-License-Identifier: Apache-2.0

package proxy

import "time"

// h2budget bounds what a peer may ask of a connection that leads to nothing: streams opened to be reset
// (CVE-2023-44487), pings, settings, empty frames. Such frames are answered as long as they are few beside useful ones.
type h2budget struct {
	resets, frames int
	at             time.Time
}

type h2cost uint8

const (
	costReset    h2cost = iota // a stream is reset before its end
	costFault                  // a stream is to be reset for what the peer did
	costFrame                  // a frame that carries nothing
	costPing                   //
	costSettings               //
)

// What a budget holds at most, and what it gets each second.
const (
	mostResets      = 1000
	resetsPerSecond = 100
	mostFrames      = 10000
	framesPerSecond = 1000
	settingsCost    = 10 // frames
	framesPerPiece  = 3  // two windows given back in crumbs, and a PING that measures the way
)

func newBudget(now time.Time) h2budget { return h2budget{mostResets, mostFrames, now} }

// spend tells whether there is enough left.
func (b *h2budget) spend(c h2cost) bool {
	if c == costReset || c == costFault {
		b.resets--
	} else if c == costSettings {
		b.frames -= settingsCost
	} else {
		b.frames--
	}
	if b.resets >= 0 && b.frames >= 0 {
		return true
	}
	now := time.Now()
	d := now.Sub(b.at)
	if d < 10*time.Millisecond {
		return false
	}
	b.at = now
	b.resets = min(b.resets+int(d*resetsPerSecond/time.Second), mostResets)
	b.frames = min(b.frames+int(d*framesPerSecond/time.Second), mostFrames)
	return b.resets >= 0 && b.frames >= 0
}

// earn is for a frame that carries something, finished for streams that ended well.
func (b *h2budget) earn()          { b.frames = min(b.frames+1, mostFrames) }
func (b *h2budget) finished(n int) { b.resets = min(b.resets+n, mostResets) }

// asked tells whether a stream is one that an endpoint was asked for and has not ended. It may cut that off, or have us do
// so, at no cost: once for each request, while all clients would pay for the connection's end. The lock is held.
func (m *h2mux) asked(stream uint32) bool {
	s := m.streams[stream]
	return m.role.fromServer() && s != nil && s.gone == nil
}

// pays is spend for frames with which peers answer pieces of bodies: those that were sent earn them some.
func (m *h2mux) pays(c h2cost) bool {
	if m.calm.spend(c) {
		return true
	}
	m.mu.Lock()
	n := m.pieces
	m.pieces = 0
	m.mu.Unlock()
	return m.calm.answers(n)
}

// answers is for so many pieces that were sent; it tells whether there is enough left.
func (b *h2budget) answers(n int) bool {
	b.frames = min(b.frames+n*framesPerPiece, mostFrames)
	return b.resets >= 0 && b.frames >= 0
}
