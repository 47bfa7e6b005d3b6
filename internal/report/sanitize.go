package report

import (
	"unicode"
	"unicode/utf8"
)

// maxText bounds every string that comes from outside, in bytes once escaped.
const maxText = 4096

const cut = "..." // ends a string that was too long

// Sanitize makes a string that a process chose fit for a log, a terminal and
// JSON: what is not plainly visible becomes an escape in the way of Go's
// (\n, \x1b, \u202e), a byte that is not UTF-8 becomes \xff, and the result
// holds at most 4 KiB. It is idempotent, so it may be applied wherever in doubt;
// the price is that a backslash stays as it is and the result cannot be turned
// back.
func Sanitize(s string) string { return SanitizeTo(s, maxText) }

// SanitizeTo is Sanitize with a bound of limit bytes, at least 16.
func SanitizeTo(s string, limit int) string {
	if len(s) <= limit && plain(s) {
		return s
	}
	return string(appendSafe(make([]byte, 0, min(len(s)+16, limit)), s, limit, false))
}

// plain says whether s is printable ASCII, as nearly all strings are.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// appendSafe appends s escaped, in at most limit bytes. With quoted set, quotes
// and backslashes are escaped too, so that the text between two quotes can be
// read back and cannot end early.
func appendSafe(dst []byte, s string, limit int, quoted bool) []byte {
	start, whole := len(dst), len(dst)
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			dst = appendHex(dst, 'x', uint32(s[0]), 2)
		case quoted && (r == '"' || r == '\\'):
			dst = append(dst, '\\', byte(r))
		case r >= ' ' && r <= '~':
			dst = append(dst, byte(r))
		case r == '\n':
			dst = append(dst, `\n`...)
		case r == '\t':
			dst = append(dst, `\t`...)
		case r == '\r':
			dst = append(dst, `\r`...)
		case r < ' ' || r == 0x7f:
			dst = appendHex(dst, 'x', uint32(r), 2)
		case visible(r):
			dst = append(dst, s[:n]...)
		case r > 0xffff:
			dst = appendHex(dst, 'U', uint32(r), 8)
		default:
			dst = appendHex(dst, 'u', uint32(r), 4)
		}
		if len(dst)-start > limit {
			return append(dst[:whole], cut...)
		}
		if len(dst)-start <= limit-len(cut) {
			whole = len(dst) // never cut inside an escape
		}
		s = s[n:]
	}
	return dst
}

// visible says whether a rune beyond ASCII shows as itself in a place of its
// own. Go's IsPrint leaves out controls, bidirectional and other format runes,
// unusual spaces, private and unassigned ones; marks join the rune before them,
// and a few letters and symbols are drawn as nothing.
func visible(r rune) bool {
	switch r {
	case 0x115f, 0x1160, 0x2800, 0x3164, 0xffa0: // Hangul fillers, the empty Braille cell
		return false
	}
	return unicode.IsPrint(r) && !unicode.IsMark(r)
}

func appendHex(dst []byte, kind byte, v uint32, digits int) []byte {
	dst = append(dst, '\\', kind)
	for i := digits - 1; i >= 0; i-- {
		dst = append(dst, "0123456789abcdef"[v>>(4*i)&15])
	}
	return dst
}

// appendJSONString appends s sanitized as a JSON string: the reader of the JSON
// gets a safe string too, whatever prints it.
func appendJSONString(dst []byte, s string) []byte {
	s = Sanitize(s)
	dst = append(dst, '"')
	for i := range len(s) { // only printable runes are left
		if s[i] == '"' || s[i] == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, s[i])
	}
	return append(dst, '"')
}
