package man

import (
	"fmt"
	"strings"
	"time"
)

// About is what the head and the foot of a page say.
type About struct {
	Version string
	Date    time.Time // of the sources
}

// page is a manual page as it is written, in the man(7) language.
type page struct{ strings.Builder }

func newPage(a About, name string, section int, title string) *page {
	p := &page{}
	fmt.Fprintf(p, ".TH %s %d %s \"kzr %s\" \"kzr\"\n", strings.ToUpper(name), section, a.Date.UTC().Format(time.DateOnly), escape(a.Version))
	p.WriteString(".nh\n.ad l\n") // words and flags stay whole
	p.section("NAME")
	fmt.Fprintf(p, "%s \\- %s\n", escape(name), escape(title))
	return p
}

func (p *page) section(title string)    { fmt.Fprintf(p, ".SH %s\n", quote(title)) }
func (p *page) subsection(title string) { fmt.Fprintf(p, ".SS %s\n", quote(title)) }

// text writes prose; a blank line in it begins a paragraph, `backquotes` are
// literal text, and indented lines keep their shape.
func (p *page) text(s string) {
	for i, para := range strings.Split(strings.Trim(s, "\n"), "\n\n") {
		if i > 0 {
			p.WriteString(".PP\n")
		}
		p.lines(para)
	}
}

func (p *page) lines(para string) {
	verbatim := false
	for line := range strings.Lines(para) {
		line = strings.TrimSuffix(line, "\n")
		if indented := strings.HasPrefix(line, "  "); indented != verbatim {
			p.WriteString(map[bool]string{true: ".RS 4\n.nf\n", false: ".fi\n.RE\n"}[indented])
			verbatim = indented
		}
		p.line(strings.TrimPrefix(line, "  "))
	}
	if verbatim {
		p.WriteString(".fi\n.RE\n")
	}
}

// line writes one line of input, in which `backquotes` are literal text.
func (p *page) line(s string) {
	for i, part := range strings.Split(s, "`") {
		switch text := escape(part); {
		case i%2 == 1:
			p.WriteString(`\fB` + text + `\fR`)
		case i == 0 && strings.HasPrefix(text, "'"), i == 0 && strings.HasPrefix(text, "."):
			p.WriteString(`\&` + text) // it would be a request
		default:
			p.WriteString(text)
		}
	}
	p.WriteString("\n")
}

// item writes a paragraph with a tag before it, and what follows below that. The
// tag may hold `literals`.
func (p *page) item(tag, text string) {
	p.WriteString(".TP\n")
	p.line(tag)
	head, below := strings.Trim(text, "\n"), ""
	for _, end := range []string{"\n\n", "\n  "} {
		if at := strings.Index(head, end); at >= 0 {
			head, below = head[:at], head[at:]+below
		}
	}
	p.lines(head)
	if below != "" {
		p.WriteString(".RS\n.PP\n")
		p.text(below)
		p.WriteString(".RE\n")
	}
}

// escape makes text of roff's special characters: a plain hyphen is one that can
// be searched for and copied.
var escape = strings.NewReplacer(`\`, `\e`, "-", `\-`, "~", `\(ti`, "^", `\(ha`).Replace

func quote(s string) string { return `"` + strings.ReplaceAll(escape(s), `"`, `\(dq`) + `"` }
