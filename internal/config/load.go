package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"golang.org/x/sys/unix"
)

// DefaultPath is the file that is read where none is named; see [Load].
const DefaultPath = "/etc/kzr/kzr.yaml"

// maxFile bounds what is read of a file, in bytes.
const maxFile = 1 << 20

// Load reads a file over the defaults, and over that the files *.yaml of the
// directory beside it, /etc/kzr/kzr.yaml.d for /etc/kzr/kzr.yaml, in the order of
// their names. A later value replaces an earlier one; rules and protected
// executables add up. Neither the file has to exist, unless it was named
// explicitly, nor the directory. It returns the files that there were. The error is
// an [*Error].
func Load(path string, explicit bool) (Config, []string, error) {
	c := Default()
	var files []string
	names := make(map[string]string)
	read := func(path string, optional bool) error {
		data, err := readFile(path)
		if optional && errors.Is(err, fs.ErrNotExist) && !exists(path) {
			return nil
		}
		if err != nil {
			return unreadable(path, err)
		}
		files = append(files, path)
		return parser{path, names}.into(&c, data)
	}
	if err := read(path, !explicit); err != nil {
		return Config{}, nil, err
	}
	dropins, err := dropins(path + ".d")
	if err != nil {
		return Config{}, nil, err
	}
	for _, path := range dropins {
		if err := read(path, false); err != nil {
			return Config{}, nil, err
		}
	}
	return c, files, nil
}

func unreadable(path string, err error) *Error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err // the path is in the Error already
	}
	return &Error{File: path, Problem: fmt.Sprintf("cannot be read: %v", err)}
}

// dropins lists the files *.yaml of a directory by name, without hidden ones: those
// are what an editor or the kubelet keeps for itself.
func dropins(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) && !exists(dir) {
		return nil, nil
	}
	if err != nil {
		return nil, unreadable(dir, err)
	}
	var files []string
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, ".yaml") && !strings.HasPrefix(name, ".") {
			files = append(files, filepath.Join(dir, name))
		}
	}
	return files, nil
}

// exists is true also of a symbolic link to nothing: somebody wanted a file to be
// there.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func readFile(path string) ([]byte, error) {
	// Without O_NONBLOCK a FIFO would hold up whoever opens it.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, errors.New("is a directory")
	case !info.Mode().IsRegular() && path != os.DevNull:
		return nil, errors.New("not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, errors.New("larger than 1 MiB")
	}
	return data, nil
}

// parser reads one file.
type parser struct {
	file  string
	names map[string]string // of the rules in all files so far, with where each is
}

// into reads the text of the file over what is in c.
func (f parser) into(c *Config, data []byte) error {
	root, err := f.document(data)
	if err != nil || root == nil {
		return err
	}
	return f.root(root, c)
}

// errorf places an error at a line, 0 if it is unknown, and a key, "" if none.
func (f parser) errorf(line int, key, format string, args ...any) *Error {
	return &Error{File: f.file, Line: line, Key: key, Problem: fmt.Sprintf(format, args...)}
}

// document returns the only document of a file, nil if there is none. It takes
// the file apart into nodes, not into a Config, because nodes know their lines.
func (f parser) document(data []byte) (*yaml.Node, error) {
	if err := f.checkText(data); err != nil {
		return nil, err
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return nil, f.syntax(err)
	}
	var first, second yaml.Node
	if err := loader.Load(&first); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, f.syntax(err)
	}
	if err := loader.Load(&second); err == nil {
		return nil, f.errorf(second.Line, "", "the file has more than one YAML document")
	} else if !errors.Is(err, io.EOF) {
		return nil, f.syntax(err)
	}
	return first.Content[0], nil
}

// checkText refuses what the YAML parser refuses too, but without a line.
func (f parser) checkText(data []byte) error {
	i := 0
	line := func() int { return 1 + bytes.Count(data[:i], []byte("\n")) }
	for i < len(data) {
		c, size := utf8.DecodeRune(data[i:])
		switch {
		case c == utf8.RuneError && size == 1:
			return f.errorf(line(), "", "invalid UTF-8: byte %#02x", data[i])
		case unicode.IsControl(c) && !strings.ContainsRune("\t\n\r\u0085", c):
			return f.errorf(line(), "", "control character %U is not allowed", c)
		}
		i += size
	}
	return nil
}

func (f parser) syntax(err error) error {
	var line int
	message := err.Error()
	if le, ok := errors.AsType[*yaml.LoadError](err); ok {
		line, message = le.Mark.Line, le.Message
		if began := le.ContextMark.Line; began > 0 && began < line {
			message += fmt.Sprintf(" %s from line %d", le.ContextMsg, began)
		}
	}
	if strings.Contains(message, "unknown anchor") {
		return f.errorf(line, "", `a value that starts with "*" needs quotes, such as "*-ci"`)
	}
	message = strconv.Quote(message[:min(len(message), 200)]) // it may quote the file
	return f.errorf(line, "", "invalid YAML: %s", message[1:len(message)-1])
}

func (f parser) root(n *yaml.Node, c *Config) error {
	return mapping(f, n, "", settings, c, func(key string, n *yaml.Node) (bool, error) {
		if key != rulesKey {
			return false, nil
		}
		return true, f.rules(n, c)
	})
}

func (f parser) rules(n *yaml.Node, c *Config) error {
	items, err := f.sequence(n, rulesKey, "rules")
	if err != nil {
		return err
	}
	for i, item := range items {
		item = resolve(item)
		var r Rule
		key := ruleKey(i)
		if err := mapping(f, item, key+".", ruleSettings, &r, nil); err != nil {
			return err
		}
		place := fmt.Sprintf("%s at %s:%d", key, escape(f.file), item.Line)
		if err := r.validate(key, place, f.names); err != nil {
			err.File, err.Line = f.file, item.Line
			return err
		}
		c.Rules = append(c.Rules, r)
	}
	return nil
}

// mapping reads the keys of n into target. at is what errors put before a key:
// where n is, with a dot at its end. own may take a key that the table does not
// have; it is nil or says whether it did.
func mapping[T any](f parser, n *yaml.Node, at string, table []setting[T], target *T,
	own func(string, *yaml.Node) (bool, error)) error {
	return submapping(f, n, at, "", table, target, own)
}

// submapping is mapping for a part of the table: the keys that start with
// prefix.
func submapping[T any](f parser, n *yaml.Node, at, prefix string, table []setting[T], target *T,
	own func(string, *yaml.Node) (bool, error)) error {
	n = resolve(n)
	where := strings.TrimSuffix(at+prefix, ".")
	switch {
	case n.ShortTag() == "!!null":
		return nil // a key with all its content commented out
	case n.Kind != yaml.MappingNode && where == "":
		return f.errorf(n.Line, "", "invalid type: expected keys and values, found %s", describe(n))
	case n.Kind != yaml.MappingNode:
		return f.errorf(n.Line, where, "invalid type: expected keys and values, found %s", describe(n))
	}
	lines := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := resolve(n.Content[i]), resolve(n.Content[i+1])
		if k.Kind != yaml.ScalarNode {
			return f.errorf(k.Line, where, "%s cannot be a key", describe(k))
		}
		key := prefix + k.Value
		shown := at + prefix + escapeKey(k.Value)
		if first, twice := lines[key]; twice {
			return f.errorf(k.Line, shown, "duplicate key, first set on line %d", first)
		}
		lines[key] = k.Line

		found, err := false, error(nil)
		if own != nil {
			found, err = own(key, v)
		}
		if !found {
			if s := lookUp(table, key); s != nil {
				found, err = true, f.value(v, shown, s.value(target))
			} else if hasPrefix(table, key+".") {
				found, err = true, submapping(f, v, at, key+".", table, target, nil)
			}
		}
		if err != nil {
			return err
		}
		if !found {
			return f.errorf(k.Line, shown, "unknown key; %s", advise(table, prefix, k.Value, own != nil))
		}
	}
	return nil
}

// value reads one node into v.
func (f parser) value(n *yaml.Node, key string, v value) error {
	l, ok := v.(*list)
	if !ok {
		return f.scalar(n, key, v)
	}
	if n.ShortTag() == "!!null" {
		return nil
	}
	if l.none {
		*l.p = nil // rather than add to an earlier file's
	}
	if n.Kind == yaml.ScalarNode { // a list of one
		return f.scalar(n, key, v)
	}
	items, err := f.sequence(n, key, v.want())
	if err != nil {
		return err
	}
	for _, item := range items {
		if err := f.scalar(resolve(item), key, v); err != nil {
			return err
		}
	}
	return nil
}

func (f parser) scalar(n *yaml.Node, key string, v value) error {
	tag := n.ShortTag()
	switch {
	case tag == "!!null":
		return f.errorf(n.Line, key, "value is missing: expected %s", v.want())
	case n.Kind != yaml.ScalarNode:
		return f.errorf(n.Line, key, "invalid type: expected %s, found %s", v.want(), describe(n))
	}
	// Set first: it knows best what is wrong. What is left are texts that would
	// do if they were not quoted, or tagged, as something else.
	if err := v.Set(n.Value); err != nil {
		return f.errorf(n.Line, key, "%v", err)
	}
	switch {
	case slices.Contains(v.tags(), tag):
		return nil
	case tag == "!!str":
		return f.errorf(n.Line, key, "invalid type: expected %s, found the string %s", v.want(), quote(n.Value))
	case slices.Contains(v.tags(), "!!str"):
		return f.errorf(n.Line, key, "invalid type: %s is %s in YAML; put it in quotes", quote(n.Value), kindOf(tag))
	default:
		return f.errorf(n.Line, key, "invalid type: expected %s, found %s, %s in YAML", v.want(), quote(n.Value), kindOf(tag))
	}
}

// sequence returns the items of a list, none for a key without a value.
func (f parser) sequence(n *yaml.Node, key, what string) ([]*yaml.Node, error) {
	switch {
	case n.ShortTag() == "!!null":
		return nil, nil
	case n.Kind != yaml.SequenceNode:
		return nil, f.errorf(n.Line, key, "invalid type: expected a list of %s, found %s", what, describe(n))
	}
	return n.Content, nil
}

// resolve follows an alias. It cannot run away: the schema's depth ends any
// descent, and the file's length any list.
func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// describe says what a node is, to a person who expected something else.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	default:
		return quote(n.Value)
	}
}

// kindOf names the YAML type of a text that was taken for something else.
func kindOf(tag string) string {
	switch tag {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!timestamp":
		return "a date"
	default:
		return "something tagged " + quote(tag)
	}
}

func lookUp[T any](table []setting[T], key string) *setting[T] {
	for i := range table {
		if table[i].key == key {
			return &table[i]
		}
	}
	return nil
}

func hasPrefix[T any](table []setting[T], prefix string) bool {
	return slices.ContainsFunc(table, func(s setting[T]) bool { return strings.HasPrefix(s.key, prefix) })
}

// advise says what an unknown key may have been meant to be, or which keys
// there are in its place.
func advise[T any](table []setting[T], prefix, name string, withRules bool) string {
	var here []string
	if withRules {
		here = append(here, rulesKey)
	}
	for _, s := range table {
		// The right word in the wrong place, or in the spelling of its flag.
		last := s.key[strings.LastIndexByte(s.key, '.')+1:]
		if plain(name) == plain(last) || s.flag != "" && plain(name) == plain(s.flag) {
			return "did you mean " + s.key + "?"
		}
		if rest, ok := strings.CutPrefix(s.key, prefix); ok {
			word, _, _ := strings.Cut(rest, ".")
			if !slices.Contains(here, word) {
				here = append(here, word)
			}
		}
	}
	slices.Sort(here)
	for _, word := range here {
		if near(plain(name), plain(word)) {
			return "did you mean " + prefix + word + "?"
		}
	}
	return "use " + enumerate(here)
}

func plain(s string) string {
	return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(s))
}

// near says that two edits or fewer make one word into the other.
func near(a, b string) bool {
	const limit = 2
	if len(a) <= limit || len(a) > len(b)+limit || len(b) > len(a)+limit {
		return false
	}
	row := make([]int, len(b)+1) // edits from a[:i] to b[:j]
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0]++
		for j := range len(b) {
			edits := diagonal
			if a[i] != b[j] {
				edits = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], edits
		}
	}
	return row[len(b)] <= limit
}

// escapeKey shows a key of the file.
func escapeKey(s string) string {
	if len(s) > 60 {
		return quote(s)
	}
	return escape(s)
}
