// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"fmt"
	"strings"
)

// block is a server block: the zones that it is for, and its plugins.
type block struct {
	keys    []string
	line    int
	plugins []directive
}

// directive is a line with its arguments, and the lines in braces behind it.
type directive struct {
	name string
	args []string
	line int
	body []directive
}

type token struct {
	text   string
	line   int
	quoted bool
}

// tokens cuts a Corefile into words and braces; the end of a line is a token of its own.
func tokens(text string) ([]token, error) {
	var out []token
	line := 1
	for i := 0; i < len(text); {
		switch c := text[i]; {
		case c == '\n':
			out = append(out, token{text: "\n", line: line})
			line++
			i++
		case c == ' ' || c == '\t' || c == '\r':
			i++
		case c == '#':
			for i < len(text) && text[i] != '\n' {
				i++
			}
		case c == '"':
			var b strings.Builder
			start := line
			for i++; ; i++ {
				if i >= len(text) {
					return nil, fmt.Errorf("line %d: a quote is not closed", start)
				}
				if text[i] == '"' {
					i++
					break
				}
				if text[i] == '\\' && i+1 < len(text) && text[i+1] == '"' {
					i++
				}
				if text[i] == '\n' {
					line++
				}
				b.WriteByte(text[i])
			}
			out = append(out, token{b.String(), start, true})
		case c == '\\' && i+1 < len(text) && text[i+1] == '\n':
			line++
			i += 2
		default:
			start := i
			for i < len(text) && !strings.ContainsRune(" \t\r\n", rune(text[i])) {
				i++
			}
			out = append(out, token{text: text[start:i], line: line})
		}
	}
	return append(out, token{text: "\n", line: line}), nil
}

// parser reads tokens.
type parser struct {
	in       []token
	at       int
	snippets map[string][]directive
}

func (p *parser) more() bool { return p.at < len(p.in) }

func (p *parser) is(text string) bool {
	return p.more() && !p.in[p.at].quoted && p.in[p.at].text == text
}

func (p *parser) skipLines() {
	for p.is("\n") {
		p.at++
	}
}

// parse reads a whole Corefile. Snippets are put in where they are imported.
func parse(text string) ([]block, error) {
	in, err := tokens(text)
	if err != nil {
		return nil, err
	}
	p := &parser{in: in, snippets: make(map[string][]directive)}
	var out []block
	for p.skipLines(); p.more(); p.skipLines() {
		b := block{line: p.in[p.at].line}
		for p.more() && !p.is("{") {
			if p.is("\n") {
				// A list of keys may go on behind a comma.
				if n := len(b.keys); n > 0 && !strings.HasSuffix(p.in[p.at-1].text, ",") {
					break
				}
				p.at++
				continue
			}
			for k := range strings.SplitSeq(p.in[p.at].text, ",") {
				if k != "" {
					b.keys = append(b.keys, k)
				}
			}
			p.at++
		}
		if !p.is("{") {
			// A Corefile may be one block without braces.
			if len(out) > 0 {
				return nil, fmt.Errorf("line %d: a { is missing behind %s", b.line, strings.Join(b.keys, " "))
			}
			if b.plugins, err = p.lines(""); err != nil {
				return nil, err
			}
			return append(out, b), nil
		}
		p.at++
		if b.plugins, err = p.lines("}"); err != nil {
			return nil, err
		}
		if n := len(b.keys); n == 1 && strings.HasPrefix(b.keys[0], "(") && strings.HasSuffix(b.keys[0], ")") {
			p.snippets[strings.Trim(b.keys[0], "()")] = b.plugins
			continue
		}
		out = append(out, b)
	}
	return out, nil
}

// lines reads directives up to a closing brace, or the end.
func (p *parser) lines(end string) ([]directive, error) {
	var out []directive
	for {
		p.skipLines()
		switch {
		case !p.more() && end == "":
			return out, nil
		case !p.more():
			return nil, fmt.Errorf("line %d: a } is missing", p.in[len(p.in)-1].line)
		case end != "" && p.is(end):
			p.at++
			return out, nil
		}
		d := directive{name: p.in[p.at].text, line: p.in[p.at].line}
		p.at++
		for p.more() && !p.is("\n") && (end == "" || !p.is(end)) {
			if p.is("{") && p.at+1 < len(p.in) && p.in[p.at+1].text == "\n" {
				p.at++
				body, err := p.lines("}")
				if err != nil {
					return nil, err
				}
				d.body = body
				break
			}
			d.args = append(d.args, p.in[p.at].text)
			p.at++
		}
		if d.name == "import" && len(d.args) == 1 {
			if s, ok := p.snippets[d.args[0]]; ok {
				out = append(out, s...)
				continue
			}
		}
		out = append(out, d)
	}
}
