// Package runtimes holds kzr against real container runtimes: its tests start
// containerd, dockerd and podman by themselves, with state, sockets and cgroups
// of their own beside those of the machine, put containers into them that leak,
// and look at what the built kzr says and does, and at what the runtime says
// became of them.
//
// Where a runtime is not installed its test is skipped, unless the environment
// variable KZR_REQUIRE_RUNTIMES is 1. `make test-runtimes` installs them. KZR_BIN
// names a built, static kzr.
package runtimes
