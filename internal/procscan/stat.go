package procscan

import (
	"bytes"
	"errors"
)

// Bits of the flags field of stat: include/linux/sched.h.
const (
	pfExiting   = 0x00000004
	pfSuperPriv = 0x00000100 // it has used a privilege
	pfKthread   = 0x00200000
)

// stat is what kzr needs of a line of /proc/PID/stat (man 5 proc_pid_stat).
type stat struct {
	comm    []byte // part of the parsed line; raw, may hold anything but NUL
	state   byte
	pid     uint32
	ppid    uint32 // 0 for a parent outside the pid namespace
	flags   uint32
	threads uint32 // 0 if the task was released while the line was made
	start   uint64 // clock ticks since boot
	waited  bool   // its counters of reaped children are not all zero
	// Signal sets, of the signals below 32.
	blocked, ignored, caught uint64
}

var errStat = errors.New("malformed stat line")

// parseStat reads a line of /proc/PID/stat. The name is between the first '('
// and the last ')': it may hold parentheses, blanks and newlines itself, and
// nothing after it can.
func parseStat(line []byte) (stat, error) {
	open := bytes.IndexByte(line, '(')
	end := bytes.LastIndexByte(line, ')')
	// At least "1 (" before, and ") Z " after the name.
	if open < 2 || end < open || len(line) < end+4 || line[end+1] != ' ' || line[end+3] != ' ' {
		return stat{}, errStat
	}
	pid, rest, ok := number(line[:open])
	if !ok || len(rest) != 0 || pid == 0 || pid > maxPID {
		return stat{}, errStat
	}
	s := stat{comm: line[open+1 : end], state: line[end+2], pid: uint32(pid)}
	if letter := s.state | 0x20; letter < 'a' || letter > 'z' {
		return stat{}, errStat
	}
	rest = line[end+4:]
	for field := 4; field <= 34; field++ {
		var v uint64
		if v, rest, ok = number(rest); !ok {
			return stat{}, errStat
		}
		switch field {
		case 4:
			if v > maxPID {
				return stat{}, errStat
			}
			s.ppid = uint32(v)
		case 9:
			s.flags = uint32(v)
		case 11, 13, 16, 17:
			// Page faults and processor time of the children that it has waited
			// for. A forked process makes a fault as soon as it runs, so these tell
			// of every wait; all they can miss is children of vfork that exec
			// nothing.
			s.waited = s.waited || v != 0
		case 20:
			s.threads = uint32(v)
		case 22:
			s.start = v
		case 32:
			s.blocked = v
		case 33:
			s.ignored = v
		case 34:
			s.caught = v
		}
	}
	return s, nil
}

// maxPID is the kernel's PID_MAX_LIMIT on 64 bits.
const maxPID = 1 << 22

// number takes a decimal number and the blank or line end behind it off b. A
// sign is skipped: the fields that can be negative are not among those used.
func number(b []byte) (v uint64, rest []byte, ok bool) {
	i := 0
	if i < len(b) && b[i] == '-' {
		i++
	}
	first := i
	for i < len(b) && b[i] >= '0' && b[i] <= '9' {
		d := uint64(b[i] - '0')
		if v > (1<<64-1-d)/10 {
			return 0, nil, false
		}
		v = v*10 + d
		i++
	}
	if i == first || i == len(b) || (b[i] != ' ' && b[i] != '\n') {
		return 0, nil, false
	}
	return v, b[i+1:], true
}
