package container

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxJSON bounds what is read of an answer in JSON. Docker's tells everything
// about a container, also its environment and its labels, which can be megabytes.
const maxJSON = 16 << 20

// maxJSONString bounds a string that is asked for, as it is written.
const maxJSONString = 4096

// jsonReader reads one value, keeps of it what it is asked for, and goes over the
// rest, which encoding/json would hold in memory. Its errors are errRefused for
// what is too long, errGarbled, or those of the reader below.
type jsonReader struct {
	in  io.LimitedReader
	buf *bufio.Reader
	raw []byte // the string that is being read, with its quotes
}

func newJSONReader(r io.Reader) *jsonReader {
	j := &jsonReader{in: io.LimitedReader{R: r, N: maxJSON + 1}}
	j.buf = bufio.NewReader(&j.in)
	return j
}

var errCut = fmt.Errorf("%w: it breaks off", errGarbled)

// object calls field for every key; field has to read the value.
func (j *jsonReader) object(field func(key string) error) error {
	c, err := j.next()
	switch {
	case err != nil:
		return err
	case c == 'n':
		return j.rest("ull")
	case c != '{':
		return unexpected(c)
	}
	if c, err = j.next(); err != nil || c == '}' {
		return err
	}
	for {
		if c != '"' {
			return unexpected(c)
		}
		key, _, err := j.str()
		if err != nil {
			return err
		}
		if c, err = j.next(); err != nil {
			return err
		}
		if c != ':' {
			return unexpected(c)
		}
		if err := field(key); err != nil {
			return err
		}
		if c, err = j.next(); err != nil || c == '}' {
			return err
		}
		if c != ',' {
			return unexpected(c)
		}
		if c, err = j.next(); err != nil {
			return err
		}
	}
}

// text reads a string, or null.
func (j *jsonReader) text(to *string) error {
	c, err := j.next()
	switch {
	case err != nil:
		return err
	case c == 'n':
		*to = ""
		return j.rest("ull")
	case c != '"':
		return unexpected(c)
	}
	s, long, err := j.str()
	if err == nil && long {
		err = fmt.Errorf("%w: a string of more than %d bytes", errRefused, maxJSONString)
	}
	*to = s
	return err
}

// skip goes over a value of any kind.
func (j *jsonReader) skip() error {
	c, err := j.next()
	for depth := 0; err == nil; c, err = j.byte() {
		switch c {
		case '{', '[':
			depth++
		case '}', ']', ',', ' ', '\t', '\n', '\r':
			if depth == 0 { // the end of a number or a word
				return j.buf.UnreadByte()
			}
			if c != '}' && c != ']' {
				continue
			}
			if depth--; depth == 0 {
				return nil
			}
		case '"':
			if err := j.skipString(); err != nil || depth == 0 {
				return err
			}
		}
	}
	return err
}

// end reads what follows the value, which is nothing.
func (j *jsonReader) end() error {
	switch c, err := j.next(); {
	case errors.Is(err, errCut):
		return nil
	case err != nil:
		return err
	default:
		return unexpected(c)
	}
}

// str reads a string from behind its first quote. Of one that is too long it
// returns nothing but that.
func (j *jsonReader) str() (s string, long bool, err error) {
	j.raw = append(j.raw[:0], '"')
	for escaped := false; ; {
		c, err := j.byte()
		if err != nil {
			return "", false, err
		}
		if len(j.raw) == maxJSONString {
			long = true
		} else {
			j.raw = append(j.raw, c)
		}
		switch {
		case escaped:
			escaped = false
		case c == '\\':
			escaped = true
		case c == '"':
			if long {
				return "", true, nil
			}
			if err := json.Unmarshal(j.raw, &s); err != nil {
				return "", false, fmt.Errorf("%w: %w", errGarbled, err)
			}
			return s, false, nil
		}
	}
}

func (j *jsonReader) skipString() error {
	for {
		switch c, err := j.byte(); {
		case err != nil || c == '"':
			return err
		case c == '\\':
			if _, err := j.byte(); err != nil {
				return err
			}
		}
	}
}

// rest reads what has to follow.
func (j *jsonReader) rest(want string) error {
	for i := range len(want) {
		if c, err := j.byte(); err != nil {
			return err
		} else if c != want[i] {
			return unexpected(c)
		}
	}
	return nil
}

// next is the next byte that is no white space.
func (j *jsonReader) next() (byte, error) {
	for {
		if c, err := j.byte(); err != nil || strings.IndexByte(" \t\n\r", c) < 0 {
			return c, err
		}
	}
}

func (j *jsonReader) byte() (byte, error) {
	c, err := j.buf.ReadByte()
	switch {
	case err == nil:
		return c, nil
	case !errors.Is(err, io.EOF):
		return 0, fmt.Errorf("reading the answer: %w", err)
	case j.in.N <= 0:
		return 0, fmt.Errorf("%w: it is longer than %d bytes", errRefused, maxJSON)
	}
	return 0, errCut
}

func unexpected(c byte) error {
	return fmt.Errorf("%w: %q is not expected there", errGarbled, rune(c))
}
