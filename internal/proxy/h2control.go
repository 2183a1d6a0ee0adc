// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/binary"

	"golang.org/x/net/http2"
)

// Frames other than DATA.

func (m *h2mux) headers(f h2frame, p []byte) *h2error {
	if f.stream == 0 {
		return connError(http2.ErrCodeProtocol, "HEADERS without a stream")
	}
	p, fault := unpad(p, f.flags)
	if fault != nil {
		return fault
	}
	if f.flags.Has(http2.FlagHeadersPriority) {
		if len(p) < 5 {
			return connError(http2.ErrCodeFrameSize, "HEADERS are too short for their priority")
		}
		if binary.BigEndian.Uint32(p)&maxWindow == f.stream {
			return connError(http2.ErrCodeProtocol, "a stream that depends on itself")
		}
		p = p[5:]
	}
	m.block.begin(f.stream, f.flags.Has(http2.FlagHeadersEndStream))
	return m.fragment(f, p)
}

func (m *h2mux) fragment(f h2frame, p []byte) *h2error {
	if fault := m.block.add(p); fault != nil {
		return fault
	}
	if !f.flags.Has(http2.FlagHeadersEndHeaders) {
		return nil
	}
	if fault := m.block.finish(); fault != nil {
		return fault
	}
	return m.role.head(m.block)
}

// priority is checked and otherwise ignored (RFC 9113 section 5.3).
func (m *h2mux) priority(f h2frame, p []byte) *h2error {
	switch {
	case f.stream == 0:
		return connError(http2.ErrCodeProtocol, "PRIORITY without a stream")
	case len(p) != 5:
		return m.streamError(f.stream, http2.ErrCodeFrameSize, "PRIORITY is not 5 bytes long")
	case binary.BigEndian.Uint32(p)&maxWindow == f.stream:
		return connError(http2.ErrCodeProtocol, "a stream that depends on itself")
	case !m.calm.spend(costFrame):
		return connError(http2.ErrCodeEnhanceYourCalm, "too many PRIORITY frames")
	}
	return nil
}

// streamError is a fault of one stream. None that is idle can be reset (RFC 9113 section 6.4), so the connection ends.
func (m *h2mux) streamError(stream uint32, code http2.ErrCode, reason string) *h2error {
	if m.role.isIdle(stream) {
		return connError(code, reason)
	}
	return &h2error{stream, code, reason}
}

func (m *h2mux) resetByPeer(f h2frame, p []byte) *h2error {
	switch {
	case f.stream == 0:
		return connError(http2.ErrCodeProtocol, "RST_STREAM without a stream")
	case len(p) != 4:
		return connError(http2.ErrCodeFrameSize, "RST_STREAM is not 4 bytes long")
	case m.role.isIdle(f.stream):
		return connError(http2.ErrCodeProtocol, "RST_STREAM on an idle stream")
	}
	code := http2.ErrCode(binary.BigEndian.Uint32(p))
	m.mu.Lock()
	s, cost := m.streams[f.stream], costReset
	if s == nil || s.gone != nil {
		cost = costFrame
	}
	m.calm.finished(m.done)
	m.done = 0
	if !m.asked(f.stream) && !m.calm.spend(cost) { // CVE-2023-44487
		m.mu.Unlock()
		return connError(http2.ErrCodeEnhanceYourCalm, "too many resets")
	}
	if cost == costFrame {
		m.mu.Unlock()
		return nil
	}
	s.abandon(&resetError{code})
	m.mu.Unlock()
	return nil
}

// resetError says that the peer has reset a stream.
type resetError struct{ code http2.ErrCode }

func (e *resetError) Error() string { return "the stream was reset: " + e.code.String() }

func (m *h2mux) settings(f h2frame, p []byte) *h2error {
	ack := f.flags.Has(http2.FlagSettingsAck)
	switch {
	case f.stream != 0:
		return connError(http2.ErrCodeProtocol, "SETTINGS on a stream")
	case len(p)%6 != 0 || ack && len(p) > 0:
		return connError(http2.ErrCodeFrameSize, "SETTINGS of a wrong length")
	case !m.calm.spend(costSettings):
		return connError(http2.ErrCodeEnhanceYourCalm, "too many SETTINGS")
	case ack:
		return nil
	}
	m.settled = true
	m.mu.Lock()
	defer m.mu.Unlock()
	for ; len(p) > 0; p = p[6:] {
		s := setting{http2.SettingID(binary.BigEndian.Uint16(p)), binary.BigEndian.Uint32(p[2:])}
		if fault := s.check(m.role.fromServer()); fault != nil {
			return fault
		}
		switch s.id {
		case http2.SettingHeaderTableSize:
			m.shrunk = m.shrunk || s.value < 4096
		case http2.SettingMaxFrameSize:
			m.sendFrame = min(int(s.value), maxFrame)
		case http2.SettingInitialWindowSize:
			more := int64(s.value) - m.initialWindow
			m.initialWindow = int64(s.value)
			for _, st := range m.streams {
				if st.sendWindow += more; st.sendWindow > maxWindow {
					return connError(http2.ErrCodeFlowControl, "a stream's window overflows")
				}
				if more > 0 {
					st.wakeWriter()
				}
			}
		}
		m.role.setting(s)
	}
	m.role.settled()
	m.out = appendFrame(m.room(), 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	return nil
}

func (m *h2mux) ping(f h2frame, p []byte) *h2error {
	switch {
	case f.stream != 0:
		return connError(http2.ErrCodeProtocol, "PING on a stream")
	case len(p) != 8:
		return connError(http2.ErrCodeFrameSize, "PING is not 8 bytes long")
	case f.flags.Has(http2.FlagPingAck):
		m.mu.Lock()
		m.pongs++
		m.mu.Unlock()
		return nil
	case !m.pays(costPing):
		return connError(http2.ErrCodeEnhanceYourCalm, "too many PINGs")
	}
	m.mu.Lock()
	m.out = appendPing(m.room(), http2.FlagPingAck, p)
	m.mu.Unlock()
	return nil
}

func (m *h2mux) windowUpdate(f h2frame, p []byte) *h2error {
	if len(p) != 4 {
		return connError(http2.ErrCodeFrameSize, "WINDOW_UPDATE is not 4 bytes long")
	}
	n := int64(binary.BigEndian.Uint32(p) & maxWindow)
	if n < 1024 && !m.pays(costFrame) { // crumbs
		return connError(http2.ErrCodeEnhanceYourCalm, "too many small WINDOW_UPDATEs")
	}
	if f.stream == 0 {
		if n == 0 {
			return connError(http2.ErrCodeProtocol, "WINDOW_UPDATE of nothing")
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.sendWindow += n; m.sendWindow > maxWindow {
			return connError(http2.ErrCodeFlowControl, "the connection's window overflows")
		}
		m.next()
		return nil
	}
	if m.role.isIdle(f.stream) {
		return connError(http2.ErrCodeProtocol, "WINDOW_UPDATE on an idle stream")
	}
	if n == 0 {
		return &h2error{f.stream, http2.ErrCodeProtocol, "WINDOW_UPDATE of nothing"}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.streams[f.stream]; s != nil && s.gone == nil {
		if s.sendWindow += n; s.sendWindow > maxWindow {
			return &h2error{f.stream, http2.ErrCodeFlowControl, "the stream's window overflows"}
		}
		s.wakeWriter()
	}
	return nil
}
