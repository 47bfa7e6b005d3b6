package runtimes

import (
	"context"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"kzr/internal/zoo"
)

// A shim that does not reap what was exec'd into its container, and the container's
// init, which cannot end before that is reaped.
func TestScenario59ShimAndInit(t *testing.T) {
	t.Parallel()
	c := startCRI(t)
	w := c.w
	config := w.write("kzr.yaml", w.settings(c.socket(), ""))
	b := c.runIn(cri.NamespaceMode_CONTAINER, "shop", "app", "serve")
	initPID := b.pid()
	shim := zoo.Parent(initPID)
	if shim <= 1 {
		t.Fatalf("the parent of process %d is %d", initPID, shim)
	}

	const probes = 10
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	running := func() (zoos, others int) {
		for _, pid := range zoo.Children(shim) {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // one that is gone is another
			switch string(comm) {
			case "zoo\n":
				zoos++
			case "pause\n":
			default:
				others++
			}
		}
		return zoos, others
	}
	for range probes {
		go func() { // answered when the shim runs again, if ever
			_, _ = c.cri.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: b.id, Cmd: []string{"/zoo", "alone", "sleep=12000", "exit"}, Timeout: 60})
		}()
	}
	// Beside them are the container's init and the sandbox; what runc still is at would be a zombie as well.
	zoo.Within(t, patience, "the probes to run", func() bool { zoos, others := running(); return zoos == probes+1 && others == 0 })
	t.Cleanup(func() { _ = unix.Kill(shim, unix.SIGCONT) })
	if err := unix.Kill(shim, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	zoo.Within(t, patience, "the probes to be dead", func() bool { return zoo.Zombies(shim) == probes })
	w.explained(shim, config,
		"containerd-shim", "shop/web-0/app", "It is stopped", fmt.Sprintf("kill -CONT %d", shim), fmt.Sprintf("kill -CHLD %d", shim), "restart the pod")

	if err := unix.Kill(initPID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// Its state is D or S, in zap_pid_ns_processes.
	zoo.Within(t, patience, "it has no memory left", func() bool { return zoo.Exiting(initPID) })
	w.explained(initPID, config,
		"pod shop/web-0",
		fmt.Sprintf("It is exiting and waits for %d dead processes of its pid namespace that process %d (containerd-shim) has not reaped", probes, shim),
		fmt.Sprintf("kill -CHLD %d", shim))

	if err := unix.Kill(shim, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	zoo.Within(t, patience, "the container to end", func() bool { _, exited := b.exitCode(); return exited })
}

// A pause process that does not reap the orphans of its pod.
func TestScenario60Sandbox(t *testing.T) {
	t.Parallel()
	c := startCRI(t)
	w := c.w
	config := w.write("kzr.yaml", w.settings(c.socket(), ""))
	b := c.runIn(cri.NamespaceMode_POD, "shared", "app", leaker...)
	pause := c.sandbox(b.pod)
	zoo.Within(t, patience, "the sandbox to have the orphans", func() bool { return zoo.Zombies(pause) >= orphans-1 })
	w.explained(pause, config,
		"is the sandbox (pause) process of pod shared/web-0: pid 1 for all containers of the pod",
		"Recreate the pod (kubectl delete pod -n shared web-0)", "all containers of the pod restart",
		"give each container an init")
}
