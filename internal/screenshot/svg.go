package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// pen is how a cell is drawn; colours are indices into palette, -1 the default.
type pen struct {
	fg, bg                         int
	bold, faint, underline, invert bool
}

var start = pen{fg: -1, bg: -1}

type cell struct {
	r rune
	pen
}

// cells takes the codes for colours off a screen as tmux gives it.
func cells(screen string) [][]cell {
	var out [][]cell
	p := start
	for text := range strings.Lines(screen) {
		var line []cell
		text = strings.TrimSuffix(text, "\n")
		for text != "" {
			if after, ok := strings.CutPrefix(text, "\x1b["); ok {
				if code, rest, ok := strings.Cut(after, "m"); ok {
					p.apply(code)
					text = rest
					continue
				}
			}
			r, n := utf8.DecodeRuneInString(text)
			line = append(line, cell{r, p})
			text = text[n:]
		}
		out = append(out, line)
	}
	return out
}

// apply takes the numbers of a Select Graphic Rendition (ECMA-48 8.3.117).
func (p *pen) apply(code string) {
	for field := range strings.SplitSeq(code, ";") {
		n, _ := strconv.Atoi(field) // an empty one is 0
		switch {
		case n == 0:
			*p = start
		case n == 1:
			p.bold = true
		case n == 2:
			p.faint = true
		case n == 4:
			p.underline = true
		case n == 7:
			p.invert = true
		case n == 22:
			p.bold, p.faint = false, false
		case n == 24:
			p.underline = false
		case n == 27:
			p.invert = false
		case n >= 30 && n <= 37:
			p.fg = n - 30
		case n == 39:
			p.fg = -1
		case n >= 40 && n <= 47:
			p.bg = n - 40
		case n == 49:
			p.bg = -1
		case n >= 90 && n <= 97:
			p.fg = n - 90 + 8
		}
	}
}

const (
	paper = "#11151c"
	ink   = "#d5dbe5"
	frame = "#1b212b"
)

var palette = [16]string{
	"#2b3340", "#ff6b6b", "#7fd88f", "#f2c14e", "#6cb2f7", "#c792ea", "#5ccfe6", "#d5dbe5",
	"#5b6678", "#ff8f8f", "#a5e8b0", "#ffd97d", "#93c9ff", "#dcb4f5", "#8fe3f2", "#ffffff",
}

func (p pen) colours() (fg, bg string) {
	fg, bg = ink, paper
	if p.fg >= 0 {
		fg = palette[p.fg]
	}
	if p.bg >= 0 {
		bg = palette[p.bg]
	}
	if p.invert {
		fg, bg = bg, fg
	}
	return fg, bg
}

// A cell is 8.4 by 18 units; text is set so that each takes exactly one.
const (
	cellW, cellH = 8.4, 18.0
	left, top    = 18.0, 46.0
	baseline     = 13.2
)

// draw makes a picture that needs no fonts of its own and looks the same wherever
// it is shown.
func draw(w io.Writer, title string, lines [][]cell) error {
	for len(lines) > 0 && len(lines[len(lines)-1]) == 0 {
		lines = lines[:len(lines)-1]
	}
	columns := 0
	for _, l := range lines {
		columns = max(columns, len(l))
	}
	width, height := 2*left+float64(columns)*cellW, top+float64(len(lines))*cellH+16
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" role="img" aria-label="%s">`+"\n",
		width, height, width, height, escape(title))
	b.WriteString(`<style>text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre}` +
		`.b{font-weight:700}.f{opacity:.62}.u{text-decoration:underline}.t{font:13px system-ui,sans-serif}</style>` + "\n")
	fmt.Fprintf(&b, `<rect width="%.0f" height="%.0f" rx="10" fill="%s"/>`+"\n", width, height, paper)
	fmt.Fprintf(&b, `<path d="M0 30V10A10 10 0 0 1 10 0H%.0fA10 10 0 0 1 %.0f 10V30Z" fill="%s"/>`+"\n", width-10, width, frame)
	for i, c := range []string{"#ff5f57", "#febc2e", "#28c840"} {
		fmt.Fprintf(&b, `<circle cx="%d" cy="15" r="5.5" fill="%s"/>`+"\n", 18+i*19, c)
	}
	fmt.Fprintf(&b, `<text class="t" x="%.0f" y="19.5" text-anchor="middle" fill="#8b95a5">%s</text>`+"\n", width/2, escape(title))
	for y, l := range lines {
		row(&b, l, top+float64(y)*cellH)
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// row draws runs of cells that look alike.
func row(b *strings.Builder, l []cell, y float64) {
	for i := 0; i < len(l); {
		j := i + 1
		for j < len(l) && l[j].pen == l[i].pen && (block(l[j].r) == nil) == (block(l[i].r) == nil) {
			j++
		}
		x, n := left+float64(i)*cellW, float64(j-i)
		fg, bg := l[i].colours()
		if bg != paper {
			fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x, y, n*cellW, cellH, bg)
		}
		if block(l[i].r) != nil {
			blocks(b, l[i:j], x, y, fg)
		} else {
			words(b, l[i:j], x, y, fg)
		}
		i = j
	}
}

func words(b *strings.Builder, l []cell, x, y float64, fg string) {
	text := ""
	for _, c := range l {
		text += string(c.r)
	}
	if l[0].underline {
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="1" fill="%s" opacity=".45"/>`+"\n",
			x, y+cellH-1.5, float64(len(l))*cellW, fg)
	}
	text = strings.TrimRight(text, " ")
	skipped := len(text) - len(strings.TrimLeft(text, " "))
	text, x = text[skipped:], x+float64(skipped)*cellW
	if text == "" {
		return
	}
	var class []string
	for _, c := range []struct {
		on   bool
		name string
	}{{l[0].bold, "b"}, {l[0].faint, "f"}} {
		if c.on {
			class = append(class, c.name)
		}
	}
	attr := ""
	if len(class) > 0 {
		attr = fmt.Sprintf(` class="%s"`, strings.Join(class, " "))
	}
	n := float64(len([]rune(text)))
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" textLength="%.1f" lengthAdjust="spacingAndGlyphs" fill="%s"%s>%s</text>`+"\n",
		x, y+baseline, n*cellW, fg, attr, escape(strings.ReplaceAll(text, " ", "\u00a0")))
}

// shape is a block character: the part of the cell that it fills, from below, and
// how densely.
type shape struct{ from, to, density float64 }

func block(r rune) *shape {
	switch {
	case r >= '▁' && r <= '█':
		return &shape{0, float64(r-'▁'+1) / 8, 1}
	case r == '▓':
		return &shape{0, 1, 0.85}
	case r == '░':
		return &shape{0, 1, 0.22}
	case r == '─':
		return &shape{0.47, 0.53, 0.6}
	}
	return nil
}

// blocks draws rectangles, which fonts do not all draw without gaps.
func blocks(b *strings.Builder, l []cell, x, y float64, fg string) {
	for i := 0; i < len(l); {
		j := i + 1
		for j < len(l) && l[j].r == l[i].r {
			j++
		}
		s := block(l[i].r)
		opacity := s.density
		if l[i].faint {
			opacity *= 0.62
		}
		high := cellH - 3 // bars stand apart from those above
		if l[i].r == '─' {
			high = cellH
		}
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s" opacity="%.2f"/>`+"\n",
			x+float64(i)*cellW, y+1.5+high*(1-s.to), float64(j-i)*cellW, high*(s.to-s.from), fg, opacity)
		i = j
	}
}

func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;").Replace(s)
}
