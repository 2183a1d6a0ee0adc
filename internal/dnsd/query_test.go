// SPDX-License-Identifier: Apache-2.0

package dnsd

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/dnszone"
	"github.com/weft-net/weft/internal/model"
)

func TestAskOutside(t *testing.T) {
	z, err := dnszone.New(dnszone.Options{})
	if err != nil {
		t.Fatal(err)
	}
	x, err := dnszone.NewExternal(z, dnszone.ExternalOptions{Zones: []string{"example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	x.Update(&model.Delta{Complete: true})
	x.Declare(dnszone.Declaration{Object: "Ingress shop/front", Namespace: "shop", Hostnames: []string{"front.example.com"}, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.80")}})
	for name, want := range map[string]string{
		"front.example.com": `front.example.com, as the world outside asks it:
  front.example.com.  300  A  192.0.2.80  (Ingress shop/front)
  front.example.com.  no AAAA record: Ingress shop/front has no address of that family
`,
		"nope.example.com": `nope.example.com, as the world outside asks it:
  nope.example.com.  NXDOMAIN: no object of the cluster declares it, or none that does has an address yet
`,
	} {
		a, err := AskOutside(x, name, []string{"A", "AAAA"})
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		a.Write(&b)
		if b.String() != want || a.Found != strings.HasPrefix(name, "front") {
			t.Errorf("found %v:\n%s\nwant:\n%s", a.Found, b.String(), want)
		}
	}
	if _, err := AskOutside(x, "front.example.com", []string{"BOGUS"}); err == nil {
		t.Error("a type that there is not")
	}
}
