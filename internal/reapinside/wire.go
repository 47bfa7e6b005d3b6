package reapinside

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// What goes over the socket pair: one message is one packet, of a size that its kind
// fixes, in the processor's byte order, as both ends are one program on one machine.
// kzr sends prepare, with the parent's pidfd; the helper looks at everything and
// answers ready, or why not. kzr then sends commit with the parent's stance, which is
// fresh for that reason, and the helper reaps one batch and answers done.

const magic = 0x6b7a7231 // changes with the layout

// maxBatch is how many zombies one batch can take: more than it has time for.
const maxBatch = 128

type kind uint32

const (
	kindHello kind = iota + 1
	kindPrepare
	kindCommit
	kindAnswer
)

type head struct {
	Magic uint32
	Kind  kind
	Seq   uint64 // of the request; an answer bears that of its request
}

type wireZombie struct {
	PID   int64
	Start uint64
}

type prepareMsg struct {
	head
	PID     int64
	Start   uint64
	N       uint64
	Zombies [maxBatch]wireZombie
}

type commitMsg struct {
	head
	Stance wireStance
}

// wireStance is [task.Stance] in fixed sizes.
type wireStance struct {
	Call         int64
	Args         [6]uint64
	Pending      uint64
	Seccomp      int32
	Filters      int32
	CS           uint16
	InCall       bool
	MayWait      bool
	UserDispatch bool
	ShadowStack  bool
	_            [2]byte
}

// fate is what became of one zombie of a batch.
type fate uint8

const (
	untouched fate = iota
	reaped
	stale // it is no zombie of this parent any more, or one that cannot be reaped now
)

type answerMsg struct {
	head
	Refusal Refusal
	_       [7]byte
	Detail  int64 // a system call's number for InCall, an error's for WaitFailed and Forbidden
	Stopped int64 // ns
	Timeout int64 // ns, of the call that was interrupted and starts over; 0 if there is none
	Fates   [maxBatch]fate
}

type helloMsg struct {
	head
	Refusal Refusal // none: it works
	_       [7]byte
	Detail  int64
}

func newStance(s task.Stance) wireStance {
	return wireStance{
		Call: s.Call, Args: s.Args, Pending: s.Pending, Seccomp: int32(s.Seccomp), Filters: int32(s.Filters), CS: s.CS,
		InCall: s.InCall, MayWait: s.MayWait, UserDispatch: s.UserDispatch, ShadowStack: s.ShadowStack,
	}
}

// maxMessage is the size of the longest.
var maxMessage = max(binary.Size(prepareMsg{}), binary.Size(commitMsg{}), binary.Size(answerMsg{}), binary.Size(helloMsg{}))

func encode(msg any) []byte {
	b, err := binary.Append(nil, binary.NativeEndian, msg)
	if err != nil {
		panic("a message of fixed size: " + err.Error())
	}
	return b
}

// decode reads a message of the kind that it is to have, all of it and no more.
func decode(b []byte, want kind, msg any) error {
	var h head
	if err := decodeHead(b, &h); err != nil {
		return err
	}
	if h.Magic != magic || h.Kind != want {
		return fmt.Errorf("message %#x of kind %d, not %d", h.Magic, h.Kind, want)
	}
	if n := binary.Size(msg); n != len(b) {
		return fmt.Errorf("%d bytes, not %d", len(b), n)
	}
	_, err := binary.Decode(b, binary.NativeEndian, msg)
	return err
}

func decodeHead(b []byte, h *head) error {
	_, err := binary.Decode(b, binary.NativeEndian, h)
	return err
}

// check says whether a request makes sense at all.
func (p *prepareMsg) check() error {
	if p.PID <= 1 || p.PID > maxPID || p.N == 0 || p.N > maxBatch {
		return fmt.Errorf("%d zombies of process %d", p.N, p.PID)
	}
	for _, z := range p.Zombies[:p.N] {
		if z.PID <= 1 || z.PID > maxPID {
			return fmt.Errorf("zombie %d", z.PID)
		}
	}
	return nil
}

const maxPID = 1 << 22 // PID_MAX_LIMIT

// maxTimeout bounds for how long a parent is left alone for a timeout's sake.
const maxTimeout = 10 * time.Minute

func errnoName(n int64) string { return unix.Errno(n).Error() }
