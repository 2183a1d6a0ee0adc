// SPDX-License-Identifier: Apache-2.0

package guardian

import (
	"errors"
	"strings"
	"testing"
)

func TestFindRange(t *testing.T) {
	const text = `# comment
other:100000:65536
alice:165536:65536
broken:x:y
1001:300000:10
alice:900000:5
`
	for _, c := range []struct {
		names []string
		want  idRange
	}{
		{[]string{"1000", "alice"}, idRange{165536, 65536}},
		{[]string{"1001", "bob"}, idRange{300000, 10}},
		{[]string{"1002", "carol"}, idRange{}},
		{[]string{"1003", "broken"}, idRange{}},
	} {
		if got := findRange(text, c.names); got != c.want {
			t.Errorf("%v: got %v, want %v", c.names, got, c.want)
		}
	}
}

func TestRootNeedsNoMapping(t *testing.T) {
	if m, err := userMapping(0, 0); m != nil || err != nil {
		t.Errorf("got %v, %v", m, err)
	}
}

func TestForbiddenSaysWhatToDo(t *testing.T) {
	refused := errors.New("operation not permitted")
	err := forbidden(refused)
	if !errors.Is(err, refused) || !strings.Contains(err.Error(), "as root") {
		t.Errorf("got %v", err)
	}
	if forbidden(nil) != nil {
		t.Error("success is an error")
	}
}

func TestLastWordsAreBounded(t *testing.T) {
	var l lastWords
	for range 10 {
		l.Write([]byte(strings.Repeat("x", 5000)))
	}
	l.Write([]byte("the end"))
	if text := l.text(); len(text) != lastWordsMax || !strings.HasSuffix(text, "the end") {
		t.Errorf("%d bytes, ending in %q", len(text), text[len(text)-10:])
	}
}
