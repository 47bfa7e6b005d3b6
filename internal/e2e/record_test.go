package e2e

import (
	"strconv"
	"strings"
	"testing"
)

// record says, for docs/RELIABILITY.md, how often something was tried and what
// came of it. A test that fails says neither.
func record(t *testing.T, times int, result string) {
	t.Helper()
	if t.Failed() {
		return
	}
	t.Attr("times", strconv.Itoa(times))
	t.Attr("result", result)
}

// statFields are the fields of /proc/PID/stat from the third on.
func statFields(text string) []string {
	return strings.Fields(text[strings.LastIndex(text, ")")+1:])
}
