package report

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// hostile are names a process can give itself, and how a person must see them.
var hostile = []struct{ name, raw, want string }{
	{"plain", "nginx: worker", "nginx: worker"},
	{"empty", "", ""},
	{"newline", "a\nevent=signal pid=1", `a\nevent=signal pid=1`},
	{"carriage return", "a\rb\tc", `a\rb\tc`},
	{"nul", "a\x00b", `a\x00b`},
	{"delete", "a\x7fb", `a\x7fb`},
	{"clear screen", "\x1b[2J\x1b[H", `\x1b[2J\x1b[H`},
	{"set title", "\x1b]0;pwned\a", `\x1b]0;pwned\x07`},
	{"C1 control sequence introducer", "\u009b31m", `\u009b31m`},
	{"stat line", "evil) Z 1 (", "evil) Z 1 ("},
	{"invalid UTF-8", "a\xff\xfeb", `a\xff\xfeb`},
	{"cut UTF-8", "a\xe2\x82", `a\xe2\x82`},
	{"surrogate", "\xed\xa0\x80", `\xed\xa0\x80`},
	{"overlong escape", "\xc0\x9b", `\xc0\x9b`},
	{"replacement rune itself", "\ufffd", "\ufffd"},
	{"right to left override", "a\u202etxt.exe", `a\u202etxt.exe`},
	{"isolate", "\u2066a\u2069", `\u2066a\u2069`},
	{"zero width", "sys\u200btemd\ufeff", `sys\u200btemd\ufeff`},
	{"line separator", "a\u2028b\u2029", `a\u2028b\u2029`},
	{"no-break space", "a\u00a0b", `a\u00a0b`},
	{"stacked mark", "\u0301\u0316x", `\u0301\u0316x`},
	{"invisible letter", "\u3164", `\u3164`},
	{"tag beyond the BMP", "\U000e0041", `\U000e0041`},
	{"private use", "\ue000", `\ue000`},
	{"letters", "größe 日本語 🧟", "größe 日本語 🧟"},
	{"quotes", `a"b\c`, `a"b\c`},
}

func TestSanitize(t *testing.T) {
	for _, tt := range hostile {
		t.Run(tt.name, func(t *testing.T) {
			if got := Sanitize(tt.raw); got != tt.want {
				t.Errorf("Sanitize(%q) = %q, want %q", tt.raw, got, tt.want)
			}
		})
	}
}

func TestSanitizeIsBounded(t *testing.T) {
	for _, s := range []string{"a", "\xff", "\u202e", "日", "\U000e0041"} {
		for _, n := range []int{1, 5, 1000, 100_000} {
			raw := strings.Repeat(s, n)
			for _, limit := range []int{16, 17, 18, 19, maxText} {
				checkSafe(t, raw, SanitizeTo(raw, limit), limit)
			}
		}
	}
	exact := strings.Repeat("a", maxText)
	if got := Sanitize(exact); got != exact {
		t.Errorf("a string of exactly the limit was cut to %d bytes", len(got))
	}
	if got := Sanitize(exact + "a"); len(got) != maxText || !strings.HasSuffix(got, "a"+cut) {
		t.Errorf("a longer one has %d bytes and ends in %q", len(got), got[len(got)-5:])
	}
	if got := SanitizeTo(strings.Repeat("\xff", 9), 16); got != `\xff\xff\xff`+cut {
		t.Errorf("cut inside an escape: %q", got)
	}
}

func checkSafe(t *testing.T, raw, got string, limit int) {
	t.Helper()
	if len(got) > limit {
		t.Fatalf("%d bytes, the limit is %d", len(got), limit)
	}
	if !utf8.ValidString(got) {
		t.Fatalf("%q became invalid UTF-8 %q", raw, got)
	}
	for _, r := range got {
		if r < ' ' || r == 0x7f || r > 0x7f && !visible(r) {
			t.Fatalf("%q became %q with %U in it", raw, got, r)
		}
	}
	if again := SanitizeTo(got, limit); again != got {
		t.Fatalf("not idempotent: %q, then %q", got, again)
	}
}

func FuzzSanitize(f *testing.F) {
	for _, tt := range hostile {
		f.Add(tt.raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		checkSafe(t, raw, Sanitize(raw), maxText)
		checkSafe(t, raw, SanitizeTo(raw, 20), 20)
	})
}
