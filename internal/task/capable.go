package task

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Capable says whether this process has a capability in effect: one of unix.CAP_*.
func Capable(capability int) (bool, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false, fmt.Errorf("reading kzr's capabilities: %w", err)
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0, nil
}
