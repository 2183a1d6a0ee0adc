// SPDX-License-Identifier: Apache-2.0

package configsync

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/route"
)

// FuzzFrames reads whatever bytes as each end of the stream does, and as a file that was kept: what is read makes sense
// when it is written and read again, and a length that lies takes no memory.
func FuzzFrames(f *testing.F) {
	whole := newTables(1)
	whole.merge(&route.Update{Endpoints: []route.EndpointSet{endpoints("e", "10.0.0.1:80")}, Listeners: []route.Listener{{Key: "l", Protocol: route.HTTP, Port: 80}}})
	for _, v := range []any{
		hello{Version: version, Pod: "p", Epoch: "e", Revision: 7, Unserved: map[string]string{"l": "taken"}},
		whole.updateFrom("e", 0), update{}, update{Epoch: "e", Revision: 8, Removed: []route.Ref{{Kind: route.KindRoute, Key: "r"}}},
		ack{Revision: 7, Errors: []string{"x"}},
	} {
		var b bytes.Buffer
		if err := writeFrame(&b, v, maxUpdate); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
		f.Add(b.Bytes()[:b.Len()-1])                                           // cut short
		f.Add(slices.Concat(b.Bytes(), b.Bytes()))                             // and another one
		f.Add(append(binary.BigEndian.AppendUint32(nil, 1<<31), b.Bytes()...)) // longer than it is
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var h hello
		if readFrame(bytes.NewReader(raw), &h, maxAnswer) == nil {
			again(t, h, maxAnswer)
		}
		var a ack
		if readFrame(bytes.NewReader(raw), &a, maxAnswer) == nil {
			again(t, a, maxAnswer)
		}
		var u update
		if readFrame(bytes.NewReader(raw), &u, maxUpdate) == nil {
			again(t, u, maxUpdate)
			s := &session{apply: func(*route.Update) error { return nil }}
			if got := s.take(&u); got.Revision != u.Revision || s.epoch != u.Epoch {
				t.Errorf("%+v confirmed as %+v", u, got)
			}
		}
		if kept, err := (&keeper{path: "file"}).read(bytes.NewReader(raw)); err == nil && kept != nil && (!kept.Complete || digestOf(kept.Resources) != kept.Digest) {
			t.Errorf("kept: %+v", kept)
		}
	})
}

// again writes a message and reads it: what is written the second time is the same.
func again[T any](t *testing.T, v T, limit int) {
	t.Helper()
	var first, second bytes.Buffer
	var back T
	if err := writeFrame(&first, v, maxUpdate); err != nil {
		t.Fatal(err)
	}
	if first.Len() > limit {
		return // escaping makes it longer than what came
	}
	if err := readFrame(bytes.NewReader(first.Bytes()), &back, limit); err != nil {
		t.Fatalf("%s: %v", first.Bytes(), err)
	}
	if err := writeFrame(&second, back, maxUpdate); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Errorf("%s\nbecame\n%s", first.Bytes(), second.Bytes())
	}
}
