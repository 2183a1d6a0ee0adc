// SPDX-License-Identifier: Apache-2.0

package configsync

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"

	"github.com/weft-net/weft/internal/route"
)

// The stream, in both directions, is frames: the length of a JSON text as four bytes, big end first, and the text.
// The client begins with a hello. The server sends updates, and pings where it has had nothing to say for a while;
// the client answers each with an ack. A new update is sent when the last one is confirmed, and holds all that has
// changed by then.
const (
	version = 1

	// maxUpdate bounds the frames of the server in bytes, maxAnswer those of the client.
	maxUpdate = 256 << 20
	maxAnswer = 256 << 10
)

// hello is what a pod says first: what it serves already.
type hello struct {
	Version  int    `json:"version"`
	Pod      string `json:"pod"`
	Epoch    string `json:"epoch,omitempty"` // of the server that Revision is from
	Revision uint64 `json:"revision,omitempty"`
	Digest   digest `json:"digest"`
	// Unserved are the listeners that are not served, by key, each with the reason.
	Unserved map[string]string `json:"unserved,omitempty"`
}

// update is a change of a gateway's tables; without an epoch it is a ping.
type update struct {
	Epoch    string `json:"epoch,omitempty"`
	Revision uint64 `json:"revision,omitempty"`
	// Complete says that it is all there is. A complete update without anything is not the same as a ping: that
	// gateway serves nothing.
	Complete bool `json:"complete,omitempty"`
	// Digest is that of all resources after the update.
	Digest    digest      `json:"digest"`
	Resources []resource  `json:"resources,omitempty"`
	Removed   []route.Ref `json:"removed,omitempty"`
}

// resource is one resource of a route.Update as JSON.
type resource struct {
	Kind  route.Kind      `json:"kind"`
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value"`
}

func (r resource) ref() route.Ref { return route.Ref{Kind: r.Kind, Key: r.Key} }

// sum identifies the resource and its content.
func (r resource) sum() digest {
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%s\x00", r.Kind, r.Key)
	h.Write(r.Value)
	var d digest
	copy(d[:], h.Sum(nil))
	return d
}

// ack confirms a revision: it is served, but for what the rest tells.
type ack struct {
	Revision uint64 `json:"revision"`
	// Errors are what could not be served of the update itself.
	Errors []string `json:"errors,omitempty"`
	// Unserved are the listeners that are not served, by key, each with the reason, whichever update brought them.
	Unserved map[string]string `json:"unserved,omitempty"`
}

// digest is of a set of resources: the sums of its members, combined so that one comes and goes at no cost. It finds
// out whether two ends that trust each other hold the same, no more.
type digest [16]byte

// toggle adds a member, or takes it out.
func (d *digest) toggle(sum digest) {
	for i := range d {
		d[i] ^= sum[i]
	}
}

// MarshalText writes hexadecimal.
func (d digest) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(d[:])), nil }

// UnmarshalText reads hexadecimal.
func (d *digest) UnmarshalText(b []byte) error {
	if n, err := hex.Decode(d[:], b); err != nil || n != len(d) || len(b) != hex.EncodedLen(len(d)) {
		return fmt.Errorf("a digest is %d hexadecimal digits, not %.40q", hex.EncodedLen(len(d)), b)
	}
	return nil
}

// writeFrame writes one frame in one call of Write.
func writeFrame(w io.Writer, v any, limit int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > limit {
		return fmt.Errorf("a message of %d bytes is more than the %d that the protocol allows", len(b), limit)
	}
	frame := make([]byte, 0, 4+len(b))
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(b)))
	_, err = w.Write(append(frame, b...))
	return err
}

// readFrame reads one frame. Memory is taken as its bytes come, not as its length promises.
func readFrame(r io.Reader, v any, limit int) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if uint64(n) > uint64(limit) {
		return fmt.Errorf("a message of %d bytes is announced; the protocol allows %d", n, limit)
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if len(b) < int(n) {
		return io.ErrUnexpectedEOF
	}
	return json.Unmarshal(b, v)
}

// encode takes an update apart.
func encode(u *route.Update) []resource {
	out := make([]resource, 0, len(u.Listeners)+len(u.Routes)+len(u.Backends)+len(u.Endpoints)+len(u.Certificates)+len(u.Policies))
	add := func(kind route.Kind, key string, v any) {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err) // plain structs of strings, numbers and lists: can't be
		}
		out = append(out, resource{kind, key, b})
	}
	for i := range u.Listeners {
		add(route.KindListener, u.Listeners[i].Key, &u.Listeners[i])
	}
	for i := range u.Routes {
		add(route.KindRoute, u.Routes[i].Key, &u.Routes[i])
	}
	for i := range u.Backends {
		add(route.KindBackend, u.Backends[i].Key, &u.Backends[i])
	}
	for i := range u.Endpoints {
		add(route.KindEndpointSet, u.Endpoints[i].Key, &u.Endpoints[i])
	}
	for i := range u.Certificates {
		add(route.KindCertificate, u.Certificates[i].Key, &u.Certificates[i])
	}
	for i := range u.Policies {
		add(route.KindPolicy, u.Policies[i].Key, &u.Policies[i])
	}
	return out
}

// decode puts an update together. A resource that can't be read, of a newer controller perhaps, is left out and named.
func decode(in *update) (*route.Update, []error) {
	out := &route.Update{Revision: in.Revision, Complete: in.Complete, Removed: in.Removed}
	var bad []error
	for _, r := range in.Resources {
		var err error
		switch r.Kind {
		case route.KindListener:
			err = read(r.Value, &out.Listeners)
		case route.KindRoute:
			err = read(r.Value, &out.Routes)
		case route.KindBackend:
			err = read(r.Value, &out.Backends)
		case route.KindEndpointSet:
			err = read(r.Value, &out.Endpoints)
		case route.KindCertificate:
			err = read(r.Value, &out.Certificates)
		case route.KindPolicy:
			err = read(r.Value, &out.Policies)
		default:
			err = fmt.Errorf("this gateway does not know the kind: upgrade it")
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("%s %s: %w", r.Kind, r.Key, err))
		}
	}
	return out, bad
}

func read[T any](b []byte, to *[]T) error {
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	*to = append(*to, v)
	return nil
}
