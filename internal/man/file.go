package man

import (
	"fmt"
	"slices"
	"strings"

	"kzr/internal/config"
)

// File renders kzr.yaml(5) from the configuration file that is shipped: a key
// without a comment there belongs to the comment above it.
func File(yaml string, a About) ([]byte, error) {
	intro, entries := parse(yaml)
	p := newPage(a, "kzr.yaml", 5, "configuration of kzr")
	p.section("SYNOPSIS")
	p.text(config.DefaultPath)
	p.section("DESCRIPTION")
	p.text(intro)
	p.section("SETTINGS")
	docs := config.Docs()
	for _, e := range entries {
		for i, key := range e.keys {
			tag := "`" + key + "`"
			at := slices.IndexFunc(docs, func(d config.Doc) bool { return d.Key == key })
			switch {
			case at >= 0:
				tag += " (" + facts(docs[at]) + ")"
				docs = slices.Delete(docs, at, at+1)
			case key != "rules":
				return nil, fmt.Errorf("%s is no key of kzr's", key)
			}
			if i < len(e.keys)-1 {
				p.WriteString(".TP\n.PD 0\n") // tags one below the other
				p.line(tag)
				continue
			}
			p.item(tag, e.text+"\n"+indent(e.example))
			p.WriteString(".PD\n")
		}
	}
	if len(docs) > 0 {
		return nil, fmt.Errorf("nothing is said about %s", docs[0].Key)
	}
	p.section("RULES")
	var keys strings.Builder
	for _, d := range config.RuleDocs() {
		fmt.Fprintf(&keys, "%-20s  %s\n", d.Key, d.Type)
	}
	p.text("The keys of a rule:\n\n" + indent(keys.String()))
	p.section("SEE ALSO")
	p.text("kzr(8)")
	return []byte(p.String()), nil
}

// indent makes page.text keep the lines of s.
func indent(s string) string {
	if s == "" {
		return ""
	}
	return "  " + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n  ")
}

func facts(d config.Doc) string {
	list := []string{strings.ReplaceAll(d.Type, "|", ", ")}
	if d.Default != "" {
		list = append(list, "default `"+d.Default+"`")
	}
	if d.Flag != "" {
		list = append(list, "flag `--"+d.Flag+"`")
	}
	return strings.Join(list, "; ")
}

// entry is what the file says about some keys.
type entry struct {
	keys    []string // with dots
	text    string
	example string
}

// parse takes the shipped file apart: comments "# like this" are text, "#like:
// this" an example. What comes before the first key's comment is the intro.
func parse(yaml string) (intro string, entries []entry) {
	var path []string // of the key that the line is below
	var e entry
	flush := func() {
		if name, _, ok := strings.Cut(e.example, ":"); ok && len(e.keys) == 0 {
			e.keys = []string{name} // it has no default to show
		}
		switch {
		case len(e.keys) > 0:
			entries = append(entries, e)
		case e.text != "":
			intro += e.text + "\n"
		}
		e = entry{}
	}
	for line := range strings.Lines(yaml) {
		line = strings.TrimSuffix(line, "\n")
		bare := strings.TrimLeft(line, " ")
		comment, isComment := strings.CutPrefix(bare, "#")
		switch text, isText := strings.CutPrefix(comment, " "); {
		case bare == "" || isText && len(e.keys) > 0:
			flush()
			if isText {
				e.text = text + "\n"
			}
		case isComment && comment == "":
			e.text += "\n" // a paragraph
		case isComment && isText && e.example == "":
			e.text += text + "\n"
		case isComment:
			e.example += comment + "\n"
		default:
			name, value, _ := strings.Cut(bare, ":")
			path = append(path[:(len(line)-len(bare))/2], name)
			if value != "" {
				e.keys = append(e.keys, strings.Join(path, "."))
			}
		}
	}
	flush()
	return intro, entries
}
