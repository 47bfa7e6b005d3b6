package reapinside

import (
	"encoding/binary"
	"testing"
)

func FuzzDecode(f *testing.F) {
	f.Add(encode(&prepareMsg{head: head{magic, kindPrepare, 1}, PID: 2, N: 1}))
	f.Add(encode(&commitMsg{head: head{magic, kindCommit, 1}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var p prepareMsg
		if decode(b, kindPrepare, &p) == nil && p.check() == nil && (p.N > maxBatch || len(b) != binary.Size(p)) {
			t.Error("accepted")
		}
		var c commitMsg
		_ = decode(b, kindCommit, &c)
	})
}

// Each refusal has a text of its own.
func TestRefusalTexts(t *testing.T) {
	seen := map[string]Refusal{}
	for r := range refusals {
		text := r.String()
		if text == "" || seen[text] != 0 {
			t.Errorf("refusal %d: %q", r, text)
		}
		seen[text] = r
	}
	for text, got := range map[string]string{
		"it is in write(2), which must not be interrupted":                     InCall.about(1),
		"it is in recvfrom(2) with MSG_WAITALL, which must not be interrupted": InCall.about(45),
		"it is in system call 999, which must not be interrupted":              InCall.about(999),
		"wait4 failed inside it: operation not permitted":                      WaitFailed.about(1),
		"a signal is pending": SignalPending.about(0),
		"refusal 200":         Refusal(200).about(0),
		"Yama forbids ptrace (kernel.yama.ptrace_scope=3)":                      Yama.String(),
		"its seccomp filter forbids wait4":                                      SeccompFilter.about(0),
		"cannot reap inside other processes: kzr lacks CAP_SYS_PTRACE: no such": (&Error{NoCapability, errText("no such")}).Error(),
	} {
		if got != text {
			t.Errorf("%q, not %q", got, text)
		}
	}
}

type errText string

func (e errText) Error() string { return string(e) }
