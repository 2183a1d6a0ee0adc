// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"strings"
	"testing"
)

func TestSecretsAreNotPrinted(t *testing.T) {
	s := Secret{Meta: Meta{Name: Name{"shop", "tls"}}, Data: map[string][]byte{"tls.key": []byte("SECRET")}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d"} {
		for _, v := range []any{s, &s, []Secret{s}, map[string]*Secret{"a": &s}["a"]} {
			got := fmt.Sprintf(verb, v)
			if strings.Contains(got, "SECRET") || strings.Contains(got, "83 69 67") {
				t.Errorf("%s of %T tells the data: %s", verb, v, got)
			}
			if !strings.Contains(got, "shop/tls") {
				t.Errorf("%s of %T does not name the Secret: %s", verb, v, got)
			}
		}
	}
}
