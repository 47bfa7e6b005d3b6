package procscan

import (
	"bytes"
	"strconv"
)

// statusMax bounds how much of a status file is read. A process may be in
// 65,536 groups, all of them in one line before those that matter.
const statusMax = 1 << 20

// status is what kzr needs of /proc/PID/status (man 5 proc_pid_status). Lines
// that are missing leave zero values.
type status struct {
	ppid   int // 0 also if it was released meanwhile
	tracer int // thread id of the tracer
	uid    uint32
	nspid  []int // from the namespace of the mount inwards
	groups []int
	capEff uint64
}

// parseStatus reads a status file. The kernel escapes newlines in Name, so a
// process cannot forge a line.
func parseStatus(b []byte) status {
	var s status
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte{'\n'})
		b = rest
		key, value, ok := bytes.Cut(line, []byte{':'})
		if !ok {
			continue
		}
		switch string(key) {
		case "PPid":
			s.ppid = firstInt(value)
		case "TracerPid":
			s.tracer = firstInt(value)
		case "Uid":
			s.uid = uint32(firstInt(value)) // real uid first
		case "NSpid":
			s.nspid = ints(value)
		case "Groups":
			s.groups = ints(value)
		case "CapEff":
			s.capEff = hex(value)
		}
	}
	return s
}

// field returns the first number behind a key such as "\nTracerPid:\t", which
// is cheaper than parsing the whole file.
func field(b []byte, key string) (int, bool) {
	i := bytes.Index(b, []byte(key))
	if i < 0 {
		return 0, false
	}
	b = b[i+len(key):]
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return 0, false // cut off: the number may not be whole
	}
	v, err := strconv.ParseUint(string(bytes.TrimSpace(b[:end])), 10, 32)
	return int(v), err == nil
}

// valueOf returns what follows a key at the beginning of a line.
func valueOf(b []byte, key string) ([]byte, bool) {
	for l := range bytes.Lines(b) {
		if value, ok := bytes.CutPrefix(l, []byte(key)); ok {
			return bytes.TrimSuffix(value, []byte{'\n'}), true
		}
	}
	return nil, false
}

func firstInt(b []byte) int {
	f := bytes.Fields(b)
	if len(f) == 0 {
		return 0
	}
	v, err := strconv.ParseUint(string(f[0]), 10, 32)
	if err != nil {
		return 0
	}
	return int(v)
}

func ints(b []byte) []int {
	var list []int
	for f := range bytes.FieldsSeq(b) {
		v, err := strconv.ParseUint(string(f), 10, 32)
		if err != nil {
			return nil
		}
		list = append(list, int(v))
	}
	return list
}

func hex(b []byte) uint64 {
	v, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 16, 64)
	if err != nil {
		return 0
	}
	return v
}
