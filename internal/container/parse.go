package container

import (
	"strconv"
	"strings"

	"kzr/internal/task"
)

// Match is one container found in a cgroup path.
type Match struct {
	Runtime string // as in [task.Container]; "" if the path does not tell
	ID      string // 64 hex digits, for lxc and nspawn its name
	PodUID  string // with dashes, or the 32 hex digits of a static pod; "" outside Kubernetes
	Cgroup  string // the container's own cgroup: the path up to and with this match
}

// Ref is what a cgroup path says about containers. Where containers are nested
// the two differ: kzr goes by Outer, which the inside cannot fake, and shows
// Inner beside it.
type Ref struct {
	Outer, Inner Match
	// Delegated says that Outer lies in a subtree that belongs to a user: a
	// rootless container, or whatever that user wants to look like one.
	Delegated bool
}

// Container is what is known of the outermost container without asking a
// runtime.
func (r Ref) Container() task.Container { return r.Outer.container() }

// Nested is the innermost container if it is not the outermost, else nil.
func (r Ref) Nested() *task.Container {
	if r.Inner == r.Outer {
		return nil
	}
	c := r.Inner.container()
	return &c
}

// HasNames says whether there are names to ask a runtime for. LXC and nspawn
// know a container by its id, and what a user's containers are called, only that
// user's own runtime knows.
func (r Ref) HasNames() bool {
	return !r.Delegated && r.Outer.Runtime != "lxc" && r.Outer.Runtime != "nspawn"
}

func (m Match) container() task.Container {
	return task.Container{Runtime: m.Runtime, ID: m.ID, PodUID: m.PodUID}
}

// runtimes are the prefixes of a container id in a cgroup's name.
var runtimes = map[string]string{
	"cri-containerd": "containerd",
	"nerdctl":        "containerd",
	"crio":           "cri-o",
	"docker":         "docker",
	"libpod":         "podman",
	"libpod-payload": "podman", // podman --cgroups=split, which quadlet uses
}

// monitors are the same for the runtime's own process that watches a container.
var monitors = map[string]bool{"crio-conmon": true, "libpod-conmon": true}

// Parse finds the containers in a cgroup path as /proc/PID/cgroup shows it. It
// reports false for a host process, a runtime's monitor, and a container whose
// path has nothing to know it by (containerd's ctr makes /NAMESPACE/NAME):
// there only the pid namespace tells.
func Parse(path string) (Ref, bool) {
	var (
		ref   Ref
		found bool
		s     walk
		user  bool
	)
	if !strings.HasPrefix(path, "/") {
		return Ref{}, false
	}
	for start := 1; start <= len(path); {
		end := start + len(path[start:])
		if i := strings.IndexByte(path[start:], '/'); i >= 0 {
			end = start + i
		}
		name := path[start:end]
		m, kind := s.next(name)
		switch {
		case kind == monitor && !found:
			return Ref{}, false
		case kind == member:
			m.Cgroup = path[:end]
			ref.Inner = m
			if !found {
				found = true
				ref.Outer, ref.Delegated = m, user
			}
		}
		user = user || ownedByUser(name)
		start = end + 1
	}
	return ref, found
}

// ownedByUser tells the cgroups below which a user may make its own: systemd's
// user manager, and the sessions that libpam-cgfs delegates on cgroup v1.
func ownedByUser(name string) bool {
	return name == "user.slice" || name == "user" || strings.HasPrefix(name, "user@")
}

type kind int

const (
	other kind = iota
	member
	monitor
)

// walk is what the names so far mean for the next one.
type walk struct {
	prev string
	pod  string // pod uid, once a name gave one
	// bare says that 64 hex digits alone are a container here.
	bare bool
	// machine is the machine that a payload would belong to.
	machine string
	inside  bool // something other than .. was seen
}

func (w *walk) next(name string) (Match, kind) {
	m, k := w.classify(name)
	if k == member {
		// What follows is inside, with pods of its own.
		*w = walk{prev: name, inside: true}
		return m, k
	}

	uid, isPod := podUID(name)
	if isPod {
		w.pod = uid
	}
	if name != ".." {
		w.inside = true
	}
	// A reader in a cgroup namespace of its own sees its siblings as /../ID,
	// with their parent's name cut off.
	w.bare = isPod || name == "docker" || name == ".." && !w.inside
	w.machine = machineName(name)
	w.prev = name
	return m, k
}

func (w *walk) classify(name string) (Match, kind) {
	if w.bare && isID(name) {
		m := Match{ID: name, PodUID: w.pod}
		if w.prev == "docker" {
			m.Runtime = "docker"
		}
		return m, member
	}

	// SLICE:PREFIX:ID is a systemd driver's name that reached a cgroupfs driver.
	if slice, rest, ok := strings.Cut(name, ":"); ok {
		prefix, id, _ := strings.Cut(rest, ":")
		if rt, ok := runtimes[prefix]; ok && isID(id) {
			uid, _ := podUID(slice)
			return Match{Runtime: rt, ID: id, PodUID: uid}, member
		}
	}

	if i := strings.LastIndexByte(name, '-'); i >= 0 {
		if id := strings.TrimSuffix(name[i+1:], ".scope"); isID(id) {
			if rt, ok := runtimes[name[:i]]; ok {
				return Match{Runtime: rt, ID: id, PodUID: w.pod}, member
			}
			if monitors[name[:i]] {
				return Match{}, monitor
			}
		}
	}

	// LXC 4 and later, then LXC before and Proxmox.
	switch {
	case strings.HasPrefix(name, "lxc.monitor.") || w.prev == "lxc.monitor":
		return Match{}, monitor
	case strings.HasPrefix(name, "lxc.payload.") && name != "lxc.payload.":
		return Match{Runtime: "lxc", ID: strings.TrimPrefix(name, "lxc.payload.")}, member
	case (w.prev == "lxc" || w.prev == "lxc.payload") && name != "":
		return Match{Runtime: "lxc", ID: name}, member
	}

	// Without the payload a machine may be a virtual one, whose processes are
	// the host's.
	if w.machine != "" {
		switch name {
		case "payload":
			return Match{Runtime: "nspawn", ID: w.machine}, member
		case "supervisor":
			return Match{}, monitor
		}
	}
	return Match{}, other
}

// isID says whether s is a container id of the OCI runtimes' managers.
func isID(s string) bool { return len(s) == 64 && isHex(s) }

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// podUID reads podUID (cgroupfs) and ANYTHING-podUID.slice (systemd, where a
// dash would mean another level and _ stands for it).
func podUID(name string) (string, bool) {
	if rest, ok := strings.CutSuffix(name, ".slice"); ok {
		i := strings.LastIndex(rest, "-pod")
		if i < 0 {
			return "", false
		}
		name = rest[i+1:]
	}
	uid, ok := strings.CutPrefix(name, "pod")
	if !ok {
		return "", false
	}
	uid = strings.ReplaceAll(uid, "_", "-")
	if !isUID(uid) {
		return "", false
	}
	return uid, true
}

// isUID says whether s is a pod's uid: a UUID, or the hash of a static pod's
// manifest.
func isUID(s string) bool {
	if len(s) == 32 {
		return isHex(s)
	}
	if len(s) != 36 {
		return false
	}
	for i, part := range strings.Split(s, "-") {
		if i >= 5 || len(part) != [5]int{8, 4, 4, 4, 12}[i] || !isHex(part) {
			return false
		}
	}
	return true
}

// machineName is NAME of machine-NAME.scope and systemd-nspawn@NAME.service.
func machineName(unit string) string {
	name, ok := strings.CutSuffix(unit, ".scope")
	if ok {
		name, ok = strings.CutPrefix(name, "machine-")
	} else if name, ok = strings.CutSuffix(unit, ".service"); ok {
		name, ok = strings.CutPrefix(name, "systemd-nspawn@")
	}
	if !ok {
		return ""
	}
	return unescape(name)
}

// unescape undoes systemd's \xNN.
func unescape(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.HasPrefix(s[i:], `\x`) && len(s) >= i+4 {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
