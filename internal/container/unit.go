package container

import "strings"

// Unit is the systemd unit that a host process's cgroup path belongs to: the
// first service or scope below the slices, as systemctl spells it; "" if there
// is none. A unit of a user's own manager is "user@UID.service/UNIT", so that
// no user can make its unit look like the system's.
func Unit(path string) string {
	manager := ""
	rest, ok := strings.CutPrefix(path, "/")
	for ok {
		var name string
		name, rest, ok = strings.Cut(rest, "/")
		if name == ".." {
			continue
		}
		name = strings.TrimPrefix(name, "_") // systemd's escape for names the kernel uses
		prefix, kind := name, ""
		if i := strings.LastIndexByte(name, '.'); i > 0 {
			prefix, kind = name[:i], name[i+1:]
		}
		switch kind {
		case "slice":
			continue
		case "service", "scope", "mount", "socket", "swap":
		default:
			return manager
		}
		switch {
		case manager != "":
			return manager + "/" + name
		case kind == "service" && strings.HasPrefix(prefix, "user@"):
			manager = name
		default:
			return name
		}
	}
	return manager
}
