package container

import (
	"bytes"
	"slices"
	"strings"
)

// Pick reads the content of /proc/PID/cgroup and chooses two of its paths: the
// one that tells the most about who the process is, and the one in the
// hierarchy with the pids controller ("" if no hierarchy can have it). Both are
// "" for content that has no path at all.
//
// On cgroup v2 there is one path and it is both. On v1 each hierarchy has its
// own: cgroupfs drivers leave the unified one with the runtime's daemon, others
// leave single controllers at /, and a zombie's are all / but the unified one.
// So the path that names a container wins, wherever it stands.
func Pick(file []byte) (name, pids string) {
	const ranks = 3 // unified, systemd's own, any other
	var byRank [ranks][]string
	v1pids := false
	for line := range bytes.Lines(file) {
		_, rest, ok := strings.Cut(strings.TrimSuffix(string(line), "\n"), ":")
		controllers, path, ok2 := strings.Cut(rest, ":")
		if !ok || !ok2 || !strings.HasPrefix(path, "/") {
			continue
		}
		// The mark of a cgroup that was removed under a process that is dead.
		path = strings.TrimSuffix(path, " (deleted)")
		switch controllers {
		case "":
			byRank[0] = append(byRank[0], path)
			if !v1pids {
				pids = path
			}
		case "name=systemd":
			byRank[1] = append(byRank[1], path)
		default:
			byRank[2] = append(byRank[2], path)
			if slices.Contains(strings.Split(controllers, ","), "pids") {
				pids, v1pids = path, true
			}
		}
	}

	all := slices.Concat(byRank[:]...)
	for _, p := range all {
		if _, ok := Parse(p); ok {
			return p, pids
		}
	}
	for _, p := range all {
		if p != "/" {
			return p, pids
		}
	}
	if len(all) > 0 {
		name = all[0]
	}
	return name, pids
}
