package procscan

import (
	"errors"
	"fmt"
	"hash/fnv"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"kzr/internal/container"
	"kzr/internal/task"
)

// hierarchies are the cgroup mounts that kzr reads. They are found once, and
// held open.
type hierarchies struct {
	unified mount // cgroup v2, alone or beside v1
	pids    mount // the v1 hierarchy with the pids controller
	freezer mount // the v1 hierarchy with the freezer controller
	err     error // why there are none
}

// mount is one cgroup mount. The zero value is none.
type mount struct {
	dir  int    // O_PATH descriptor
	root string // the cgroup that the mount shows as its root
	ok   bool
}

func openHierarchies(fs procfs.FS) hierarchies {
	var h hierarchies
	mounts, err := fs.GetMounts()
	if err != nil {
		h.err = fmt.Errorf("finding the cgroup mounts: %w", err)
		return h
	}
	for _, m := range mounts {
		var slot *mount
		_, isPids := m.SuperOptions["pids"]
		_, isFreezer := m.SuperOptions["freezer"]
		switch {
		case m.FSType == "cgroup2":
			slot = &h.unified
		case m.FSType == "cgroup" && isPids && isFreezer:
			slot = &h.pids
			h.freezer.offer(m)
		case m.FSType == "cgroup" && isPids:
			slot = &h.pids
		case m.FSType == "cgroup" && isFreezer:
			slot = &h.freezer
		default:
			continue
		}
		slot.offer(m)
	}
	return h
}

// offer takes the mount if it is the first, or shows more than the one taken:
// a container's own cgroup may be mounted as well as the whole tree.
func (m *mount) offer(info *procfs.MountInfo) {
	if m.ok && len(m.root) <= len(info.Root) {
		return
	}
	fd, err := unix.Open(unescape(info.MountPoint), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // covered by another mount, or forbidden
	}
	m.close()
	*m = mount{dir: fd, root: unescape(info.Root), ok: true}
}

func (m *mount) close() {
	if m.ok {
		_ = unix.Close(m.dir) // O_PATH: nothing is lost
	}
	*m = mount{}
}

func (h *hierarchies) close() {
	h.unified.close()
	h.pids.close()
	h.freezer.close()
}

// unescape undoes mountinfo's octal escapes for blank, tab, newline and
// backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// chainMax is how many ancestors of a cgroup are looked at, the outermost: more
// than any runtime makes. Whoever may make cgroups can make them two thousand
// deep, and looking costs with the square of that.
const chainMax = 32

// chain lists a cgroup and its ancestors, from the inside outwards, as paths
// below the mount; of a deep one itself and the outermost. It is empty for a
// cgroup that the mount does not show.
func (m *mount) chain(cgroup string) []string {
	if !m.ok || !strings.HasPrefix(cgroup, "/") || slices.Contains(strings.Split(cgroup, "/"), "..") {
		return nil
	}
	if m.root != "/" {
		rest, ok := strings.CutPrefix(cgroup, m.root)
		if !ok || (rest != "" && rest[0] != '/') {
			return nil
		}
		cgroup = rest
	}
	var list []string
	for p := strings.Trim(cgroup, "/"); p != ""; p, _ = path.Split(p) {
		p = strings.TrimRight(p, "/")
		list = append(list, p)
	}
	if n := len(list); n > chainMax {
		list = slices.Delete(list, 1, n-chainMax)
	}
	return append(list, ".")
}

// read returns a cgroup file's text, "" if there is no such file, or it is deeper
// down than a path can reach: who may make cgroups can make them that deep.
func (m *mount) read(cgroup, file string) (string, error) {
	b, err := readAll(m.dir, cgroup+"/"+file, 4096)
	if gone(err) || errors.Is(err, unix.ENODEV) || // removed while it was read
		errors.Is(err, unix.ENAMETOOLONG) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

// cgroupMax is how much of a process's cgroup file is read: the longest path
// in every hierarchy that a kernel can have.
const cgroupMax = 17 * 4096

// key identifies the cgroups of a process with this cgroup file.
func (h *hierarchies) key(file []byte) task.CgroupKey {
	if len(file) == 0 {
		return task.CgroupKey{}
	}
	set := fnv.New64a()
	_, _ = set.Write(file) // it cannot fail
	_, pids := container.Pick(file)
	unified, _ := valueOf(file, "0::")
	key := task.CgroupKey{
		Set: set.Sum64(),
		ID:  h.unified.inode(string(unified)),
	}
	if key.Pids = key.ID; h.pids.ok {
		key.Pids = h.pids.inode(pids)
	}
	return key
}

// inode is that of a cgroup's directory, 0 if the mount does not show it.
func (m *mount) inode(cgroup string) uint64 {
	chain := m.chain(cgroup)
	if len(chain) == 0 {
		return 0
	}
	var st unix.Stat_t
	if err := unix.Fstatat(m.dir, chain[0], &st, 0); err != nil {
		return 0
	}
	return st.Ino
}

// frozen says whether a process with this cgroup file is frozen, or is about to
// be.
func (h *hierarchies) frozen(file []byte) (bool, error) {
	for line := range strings.Lines(string(file)) {
		part := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(part) != 3 {
			continue
		}
		var frozen bool
		var err error
		switch {
		case part[0] == "0":
			frozen, err = h.unified.frozen(part[2])
		case slices.Contains(strings.Split(part[1], ","), "freezer"):
			frozen, err = h.freezer.frozenV1(part[2])
		}
		if frozen || err != nil {
			return frozen, err
		}
	}
	return false, nil
}

func (m *mount) frozen(cgroup string) (bool, error) {
	for i, c := range m.chain(cgroup) {
		// What was asked for, here or further out, also before all have obeyed.
		text, err := m.read(c, "cgroup.freeze")
		if err != nil || text == "1" {
			return err == nil, err
		}
		if i > 0 {
			continue
		}
		// What an ancestor outside the mount was asked for shows only here.
		text, err = m.read(c, "cgroup.events")
		if err != nil || strings.Contains("\n"+text+"\n", "\nfrozen 1\n") {
			return err == nil, err
		}
	}
	return false, nil
}

func (m *mount) frozenV1(cgroup string) (bool, error) {
	for _, c := range m.chain(cgroup) {
		// FREEZING and FROZEN include what the ancestors ask for, so the first that
		// can be read tells.
		state, err := m.read(c, "freezer.state")
		if err != nil || state != "" {
			return err == nil && state != "THAWED", err
		}
	}
	return false, nil
}

// PidsLimits returns the limits of a task.Process's PidsCgroup, its own and its
// ancestors', those that have one and that kzr can see.
func (s *Scanner) PidsLimits(cgroup string) []task.PidsLimit {
	var limits []task.PidsLimit
	err := s.frugally(func() (err error) {
		limits, err = s.pidsLimits(cgroup)
		return err
	})
	if err != nil {
		return nil
	}
	return limits
}

func (s *Scanner) pidsLimits(cgroup string) ([]task.PidsLimit, error) {
	m := &s.cgroups.pids
	if !m.ok {
		m = &s.cgroups.unified
	}
	var limits []task.PidsLimit
	for _, c := range m.chain(cgroup) {
		l, err := m.pidsLimit(c)
		if err != nil {
			return nil, err
		}
		if l.Limit >= 0 {
			limits = append(limits, l)
		}
	}
	return limits, nil
}

// pidsLimit reads one cgroup's own limit, -1 for none: "max", or no such file, as
// in the root.
func (m *mount) pidsLimit(cgroup string) (task.PidsLimit, error) {
	none := task.PidsLimit{Limit: -1}
	text, err := m.read(cgroup, "pids.max")
	if err != nil {
		return none, err
	}
	limit, err := strconv.Atoi(text)
	if err != nil {
		return none, nil //nolint:nilerr // said above
	}
	if text, err = m.read(cgroup, "pids.current"); err != nil {
		return none, err
	}
	current, err := strconv.Atoi(text)
	if err != nil {
		return none, nil //nolint:nilerr // removed meanwhile
	}
	var st unix.Stat_t
	if err := unix.Fstatat(m.dir, cgroup, &st, 0); err != nil {
		return none, nil //nolint:nilerr // removed meanwhile
	}
	return task.PidsLimit{ID: st.Ino, Current: current, Limit: limit}, nil
}
