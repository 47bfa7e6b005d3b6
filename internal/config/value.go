package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"kzr/internal/glob"
)

// maxCount bounds every number: PID_MAX_LIMIT of the kernel, more tasks than
// any node can hold.
const maxCount = 4 << 20

// maxDuration bounds every duration, so that the moment it is added to cannot
// overflow and turn a very long wait into none.
const maxDuration = 365 * 24 * time.Hour

// A value is one place in a [Config] or a [Rule] that text is read into. It
// implements [pflag.Value].
type value interface {
	// Set reads one text and leaves the place alone if it will not do.
	Set(text string) error
	// String shows what the place holds.
	String() string
	// Type is what help shows for it: "N", "duration", "auto|ebpf|proc".
	Type() string

	// check says what is wrong with what the place holds.
	check() error
	// unset says that the place holds its zero value.
	unset() bool
	// want completes "use …".
	want() string
	// tags are the YAML tags that its text may carry in a file.
	tags() []string
}

// scalar is a value with one text.
type scalar[V comparable] struct {
	p     *V
	typ   string
	use   string // what [scalar.want] says
	yaml  []string
	parse func(string) (V, error)
	valid func(V) error
	show  func(V) string // nil is fmt.Sprint
}

func (s *scalar[V]) Set(text string) error {
	v, err := s.parse(text)
	if err != nil {
		return err
	}
	if err := s.valid(v); err != nil {
		return err
	}
	*s.p = v
	return nil
}

func (s *scalar[V]) String() string {
	if s.show != nil {
		return s.show(*s.p)
	}
	return fmt.Sprint(*s.p)
}

func (s *scalar[V]) Type() string   { return s.typ }
func (s *scalar[V]) check() error   { return s.valid(*s.p) }
func (s *scalar[V]) unset() bool    { var zero V; return *s.p == zero }
func (s *scalar[V]) want() string   { return s.use }
func (s *scalar[V]) tags() []string { return s.yaml }

func count(p *int) value {
	const what = "a whole number of at least 1"
	return &scalar[int]{p: p, typ: "N", use: what, yaml: []string{"!!int"},
		parse: func(text string) (int, error) {
			n, err := strconv.Atoi(text)
			switch {
			case errors.Is(err, strconv.ErrRange):
				return 0, fmt.Errorf("%s is out of range: expected a whole number from 1 to %d", quote(text), maxCount)
			case err != nil:
				return 0, fmt.Errorf("invalid number %s: expected %s", quote(text), what)
			}
			return n, nil
		},
		valid: func(n int) error {
			switch {
			case n < 1:
				return fmt.Errorf("%d is out of range: expected %s", n, what)
			case n > maxCount:
				return fmt.Errorf("%d is out of range: expected a whole number of at most %d", n, maxCount)
			}
			return nil
		},
	}
}

// duration is a Go duration of at least low.
func duration(p *time.Duration, low time.Duration) value {
	what := `a duration such as 30s or 1m`
	return &scalar[time.Duration]{p: p, typ: "duration", use: what, yaml: []string{"!!str", "!!int"},
		parse: func(text string) (time.Duration, error) {
			d, err := time.ParseDuration(text)
			if err == nil {
				return d, nil
			}
			if _, err := strconv.ParseFloat(text, 64); err == nil {
				return 0, fmt.Errorf("invalid duration %s: missing unit; expected %s", quote(text), what)
			}
			return 0, fmt.Errorf("invalid duration %s: expected %s", quote(text), what)
		},
		valid: func(d time.Duration) error {
			switch {
			case d < low:
				return fmt.Errorf("%s is out of range: expected a duration of at least %s", showDuration(d), showDuration(low))
			case d > maxDuration:
				return fmt.Errorf("%s is out of range: expected a duration of at most %s", showDuration(d), showDuration(maxDuration))
			}
			return nil
		},
		show: showDuration,
	}
}

// showDuration writes 1m0s as 1m and 0s as 0.
func showDuration(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func fraction(p *float64) value {
	const what = "a number from 0 to 1"
	return &scalar[float64]{p: p, typ: "fraction", use: what, yaml: []string{"!!float", "!!int"},
		parse: func(text string) (float64, error) {
			f, err := strconv.ParseFloat(text, 64)
			if err != nil || math.IsNaN(f) {
				return 0, fmt.Errorf("invalid number %s: expected %s", quote(text), what)
			}
			return f, nil
		},
		valid: func(f float64) error {
			if !(f >= 0 && f <= 1) { // not f < 0 || f > 1: NaN is neither
				return fmt.Errorf("%g is out of range: expected %s", f, what)
			}
			return nil
		},
	}
}

func toggle(p *bool) value {
	const what = "true or false"
	return &scalar[bool]{p: p, typ: "bool", use: what, yaml: []string{"!!bool"},
		parse: func(text string) (bool, error) {
			b, err := strconv.ParseBool(text)
			if err != nil {
				return false, fmt.Errorf("invalid value %s: expected %s", quote(text), what)
			}
			return b, nil
		},
		valid: func(bool) error { return nil },
	}
}

// choice is one of a few words.
func choice[V ~string](p *V, words ...V) value {
	names := make([]string, len(words))
	for i, w := range words {
		names[i] = string(w)
	}
	what := enumerate(names)
	valid := func(v V) error {
		if !slices.Contains(words, v) {
			return fmt.Errorf("unknown value %s: expected %s", quote(string(v)), what)
		}
		return nil
	}
	return &scalar[V]{p: p, typ: strings.Join(names, "|"), use: what, yaml: []string{"!!str"},
		parse: func(text string) (V, error) { return V(text), nil },
		valid: valid,
	}
}

// reap is choice, with a reason for the word that only a rule may use.
func reap(p *Reap) value {
	v := choice(p, ReapOff, ReapAdopted).(*scalar[Reap])
	known := v.valid
	v.valid = func(r Reap) error {
		if r == ReapAll {
			return fmt.Errorf("%q is only allowed in a rule: expected off or adopted", r)
		}
		return known(r)
	}
	return v
}

// text is a string that valid accepts.
func text(p *string, typ, what string, valid func(string) error) value {
	return &scalar[string]{p: p, typ: typ, use: what, yaml: []string{"!!str"},
		parse: func(text string) (string, error) { return text, nil },
		valid: valid,
	}
}

// pointer makes an optional value out of a value for the same text; nil is not
// given.
func pointer[V any](p **V, inner func(*V) value) value {
	model := inner(new(V))
	return &scalar[*V]{p: p, typ: model.Type(), use: model.want(), yaml: model.tags(),
		parse: func(text string) (*V, error) {
			v := new(V)
			return v, inner(v).Set(text)
		},
		valid: func(v *V) error {
			if v == nil {
				return nil
			}
			return inner(v).check()
		},
	}
}

func uid(p *uint32) value {
	const what = "a numeric user id"
	return &scalar[uint32]{p: p, typ: "uid", use: what, yaml: []string{"!!int"},
		parse: func(text string) (uint32, error) {
			n, err := strconv.ParseUint(text, 10, 32)
			if err != nil {
				return 0, fmt.Errorf("invalid user id %s: expected %s", quote(text), what)
			}
			return uint32(n), nil
		},
		valid: func(n uint32) error {
			if n == math.MaxUint32 { // (uid_t)-1 means "none" to the kernel
				return fmt.Errorf("%d is not a valid user id", n)
			}
			return nil
		},
	}
}

// list is a value with any number of texts.
type list struct {
	p     *[]string
	typ   string
	use   string              // one of them
	clean func(string) string // nil takes a text as it is
	valid func(string) error
	first func(string) error // valid for the first of them; nil is valid
	// none says that an empty list is not the same as no list. A single empty text
	// asks for it.
	none bool
}

// Set adds one text.
func (l *list) Set(text string) error {
	if l.none && text == "" && len(*l.p) == 0 {
		*l.p = []string{}
		return nil
	}
	if l.clean != nil {
		text = l.clean(text)
	}
	if err := l.validAt(len(*l.p), text); err != nil {
		return err
	}
	*l.p = append(*l.p, text)
	return nil
}

func (l *list) validAt(i int, text string) error {
	if i == 0 && l.first != nil {
		return l.first(text)
	}
	return l.valid(text)
}

func (l *list) String() string { return strings.Join(*l.p, ", ") }
func (l *list) Type() string   { return l.typ }
func (l *list) unset() bool    { return len(*l.p) == 0 }
func (l *list) want() string   { return l.use }
func (l *list) tags() []string { return []string{"!!str"} }

func (l *list) check() error {
	for i, s := range *l.p {
		if err := l.validAt(i, s); err != nil {
			return err
		}
	}
	return nil
}

// checkArgument is for a command's, which may be empty.
func checkArgument(s string) error {
	if strings.ContainsRune(s, 0) {
		return fmt.Errorf("invalid argument %s: it contains a NUL", quote(s))
	}
	return nil
}

// checkGlob is for the strings of a rule's match.
func checkGlob(s string) error {
	if s == "" {
		return errors.New(`"" matches nothing: omit the key to match everything`)
	}
	if _, err := glob.Compile(s); err != nil {
		return fmt.Errorf("invalid pattern %s: %w", quote(s), err)
	}
	return nil
}

func checkProtect(s string) error {
	if err := checkPath(s); err != nil {
		return err
	}
	if _, err := glob.Compile(s); err != nil {
		return fmt.Errorf("invalid pattern %s: %w", quote(s), err)
	}
	return nil
}

// checkPath accepts absolute paths in the form in which the kernel shows them,
// so that one that could never match is noticed.
func checkPath(s string) error {
	if !path.IsAbs(s) {
		return fmt.Errorf("invalid path %s: expected an absolute path", quote(s))
	}
	if strings.ContainsRune(s, 0) {
		return fmt.Errorf("invalid path %s: it contains a NUL", quote(s))
	}
	if c := path.Clean(s); c != s {
		return fmt.Errorf("invalid path %s: write it as %s", quote(s), quote(c))
	}
	return nil
}

func checkSocket(s string) error {
	const limit = 107 // sizeof(sun_path) - 1
	switch {
	case s == "":
		return nil
	case len(s) > limit:
		return fmt.Errorf("path %s is too long for a unix socket: at most %d bytes", quote(s), limit)
	}
	return checkPath(s)
}

// socketPath is the path in a unix:// URL, which is what crictl and kubelet are
// given; other texts are themselves.
func socketPath(s string) string {
	if rest, ok := strings.CutPrefix(s, "unix:"); ok {
		return "/" + strings.TrimLeft(rest, "/") // unix:/x, unix:///x
	}
	return s
}

func checkRuntime(s string) error {
	if s == "" {
		return errors.New(`the path of a socket is empty`)
	}
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		return fmt.Errorf("unsupported scheme %s: expected a path or unix:///path", quote(scheme))
	}
	return checkSocket(s)
}

func checkMetrics(s string) error {
	if s == "" {
		return nil
	}
	const use = `expected host:port such as 127.0.0.1:9100, or "" for none`
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("invalid address %s: %s", quote(s), use)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("invalid port in %s: %s", quote(s), use)
	}
	for _, c := range host {
		if c > unicode.MaxASCII || !unicode.IsLetter(c) && !unicode.IsDigit(c) && !strings.ContainsRune("-._:%", c) {
			return fmt.Errorf("invalid host in %s: %s", quote(s), use)
		}
	}
	return nil
}

func checkName(s string) error {
	const limit = 64
	switch {
	case s == "":
		return errors.New("is missing or empty: every rule needs a name")
	case utf8.RuneCountInString(s) > limit:
		return fmt.Errorf("%s is too long: at most %d characters", quote(s), limit)
	}
	for _, c := range s {
		if c == utf8.RuneError || !unicode.IsPrint(c) {
			return fmt.Errorf("%s contains characters that cannot be printed", quote(s))
		}
	}
	return nil
}

// enumerate writes a, b or c.
func enumerate(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// quote shows a text that somebody else wrote: escaped, and not too much of it.
func quote(s string) string {
	const limit = 60
	if len(s) <= limit {
		return strconv.Quote(s)
	}
	return strconv.Quote(s[:limit]) + "…"
}
