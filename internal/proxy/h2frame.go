// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/net/http2"
)

// h2error ends a stream, or the connection when stream is 0 (RFC 9113 section 5.4).
type h2error struct {
	stream uint32
	code   http2.ErrCode
	reason string
}

func (e *h2error) Error() string {
	if e.stream == 0 {
		return fmt.Sprintf("HTTP/2: %s: %s", e.code, e.reason)
	}
	return fmt.Sprintf("HTTP/2 stream %d: %s: %s", e.stream, e.code, e.reason)
}

func connError(code http2.ErrCode, reason string) *h2error { return &h2error{0, code, reason} }

// Sizes of RFC 9113 in bytes.
const (
	frameHeader   = 9
	maxFrame      = 16384 // the largest payload that we take, and send
	maxWindow     = 1<<31 - 1
	defaultWindow = 65535
)

// h2frame is a frame's header (RFC 9113 section 4.1).
type h2frame struct {
	length int
	kind   http2.FrameType
	flags  http2.Flags
	stream uint32
}

func parseFrameHeader(b []byte) h2frame {
	_ = b[8]
	return h2frame{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]), kind: http2.FrameType(b[3]), flags: http2.Flags(b[4]),
		stream: binary.BigEndian.Uint32(b[5:]) & maxWindow,
	}
}

func appendFrame(b []byte, length int, kind http2.FrameType, flags http2.Flags, stream uint32) []byte {
	return append(b, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags), byte(stream>>24), byte(stream>>16), byte(stream>>8), byte(stream))
}

func setFrameLength(b []byte, length int) {
	b[0], b[1], b[2] = byte(length>>16), byte(length>>8), byte(length)
}

func appendWindowUpdate(b []byte, stream uint32, n int64) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(b, 4, http2.FrameWindowUpdate, 0, stream), uint32(n))
}

func appendReset(b []byte, stream uint32, code http2.ErrCode) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(b, 4, http2.FrameRSTStream, 0, stream), uint32(code))
}

func appendGoAway(b []byte, last uint32, code http2.ErrCode, reason string) []byte {
	b = appendFrame(b, 8+len(reason), http2.FrameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, reason...)
}

func appendPing(b []byte, flags http2.Flags, data []byte) []byte {
	return append(appendFrame(b, 8, http2.FramePing, flags, 0), data...)
}

// setting is one of a SETTINGS frame (RFC 9113 section 6.5.1).
type setting struct {
	id    http2.SettingID
	value uint32
}

func appendSettings(b []byte, settings ...setting) []byte {
	b = appendFrame(b, 6*len(settings), http2.FrameSettings, 0, 0)
	for _, s := range settings {
		b = binary.BigEndian.AppendUint16(b, uint16(s.id))
		b = binary.BigEndian.AppendUint32(b, s.value)
	}
	return b
}

// check refuses what RFC 9113 section 6.5.2 does. fromServer: a server sent it.
func (s setting) check(fromServer bool) *h2error {
	switch s.id {
	case http2.SettingEnablePush:
		if s.value > 1 || fromServer && s.value != 0 {
			return connError(http2.ErrCodeProtocol, "SETTINGS_ENABLE_PUSH out of range")
		}
	case http2.SettingInitialWindowSize:
		if s.value > maxWindow {
			return connError(http2.ErrCodeFlowControl, "SETTINGS_INITIAL_WINDOW_SIZE out of range")
		}
	case http2.SettingMaxFrameSize:
		if s.value < maxFrame || s.value > 1<<24-1 {
			return connError(http2.ErrCodeProtocol, "SETTINGS_MAX_FRAME_SIZE out of range")
		}
	case http2.SettingEnableConnectProtocol:
		if s.value > 1 {
			return connError(http2.ErrCodeProtocol, "SETTINGS_ENABLE_CONNECT_PROTOCOL out of range")
		}
	}
	return nil
}

// unpad takes the padding off a HEADERS or DATA payload that is all there (RFC 9113 section 6.1).
func unpad(p []byte, flags http2.Flags) ([]byte, *h2error) {
	if !flags.Has(http2.FlagDataPadded) {
		return p, nil
	}
	if len(p) == 0 {
		return nil, connError(http2.ErrCodeFrameSize, "a padded frame without the length of its padding")
	}
	pad := int(p[0])
	if p = p[1:]; pad > len(p) {
		return nil, connError(http2.ErrCodeProtocol, "more padding than frame")
	}
	return p[:len(p)-pad], nil
}
