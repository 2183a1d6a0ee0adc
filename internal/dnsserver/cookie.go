// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"crypto/rand"
	"encoding/binary"
	"math/bits"
	"time"
)

// Lengths of DNS cookies (RFC 7873; the server's is the one of RFC 9018).
const (
	clientCookie = 8
	serverCookie = 16
)

// cookieJar makes server cookies: a client that shows one was reached at the address that it claims to have.
type cookieJar struct {
	k0, k1 uint64
}

func newCookieJar() (*cookieJar, error) {
	var key [16]byte
	if _, err := rand.Read(key[:]); err != nil {
		return nil, err
	}
	return &cookieJar{binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])}, nil
}

// appendOption adds the COOKIE option of an answer: the client's cookie back, and the server's.
func (j *cookieJar) appendOption(b, client, addr []byte) []byte {
	b = append(b, 0, optionCookie, 0, clientCookie+serverCookie)
	return j.append(append(b, client...), client, addr, uint32(time.Now().Unix()))
}

// append adds the server cookie of RFC 9018 section 4.
func (j *cookieJar) append(b, client, addr []byte, now uint32) []byte {
	start := len(b)
	b = append(b, 1, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, now)
	var in [clientCookie + 8 + 16]byte
	n := copy(in[:], client)
	n += copy(in[n:], b[start:])
	n += copy(in[n:], addr)
	return binary.LittleEndian.AppendUint64(b, j.sip(in[:n]))
}

// valid tells whether a server cookie is one of ours for this client, and not older than an hour.
func (j *cookieJar) valid(cookie, addr []byte, now uint32) bool {
	if len(cookie) != clientCookie+serverCookie || cookie[clientCookie] != 1 {
		return false
	}
	made := binary.BigEndian.Uint32(cookie[clientCookie+4:])
	if age := int32(now - made); age > 3600 || age < -300 {
		return false
	}
	var want [serverCookie]byte
	j.append(want[:0], cookie[:clientCookie], addr, made)
	return string(want[:]) == string(cookie[clientCookie:])
}

// sip is SipHash-2-4 (Aumasson, Bernstein 2012).
func (j *cookieJar) sip(b []byte) uint64 {
	v0, v1 := j.k0^0x736f6d6570736575, j.k1^0x646f72616e646f6d
	v2, v3 := j.k0^0x6c7967656e657261, j.k1^0x7465646279746573
	round := func() {
		v0 += v1
		v1 = bits.RotateLeft64(v1, 13) ^ v0
		v0 = bits.RotateLeft64(v0, 32)
		v2 += v3
		v3 = bits.RotateLeft64(v3, 16) ^ v2
		v0 += v3
		v3 = bits.RotateLeft64(v3, 21) ^ v0
		v2 += v1
		v1 = bits.RotateLeft64(v1, 17) ^ v2
		v2 = bits.RotateLeft64(v2, 32)
	}
	last := uint64(len(b)) << 56
	for ; len(b) >= 8; b = b[8:] {
		m := binary.LittleEndian.Uint64(b)
		v3 ^= m
		round()
		round()
		v0 ^= m
	}
	for i, c := range b {
		last |= uint64(c) << (8 * i)
	}
	v3 ^= last
	round()
	round()
	v0 ^= last
	v2 ^= 0xff
	for range 4 {
		round()
	}
	return v0 ^ v1 ^ v2 ^ v3
}
