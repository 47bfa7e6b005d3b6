#!/bin/bash
# Run the tests on an emulated processor, and this kernel. What the emulator answers
# itself, as bpf, ptrace and clone's namespaces, would be a test of the emulator; and
# a test that starts itself again cannot. See docs/PLATFORMS.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
export GOARCH=arm64 CGO_ENABLED=0

# TESTFLAGS are several.
# shellcheck disable=SC2086
emulated() { go test -count=1 -exec qemu-aarch64-static $TESTFLAGS "$@"; }

# some PACKAGE NAME...: its tests that begin so, and each does.
some() {
	local package=$1 all name
	shift
	all=$(emulated -list . "$package") || { echo "$all" && return 1; }
	for name; do
		grep -q "^Test$name" <<<"$all" || { echo >&2 "$package has no test that begins with $name" && return 1; }
	done
	emulated -run "^Test($(IFS='|' && echo "$*"))" "$package"
}

emulated ./internal/advice ./internal/config ./internal/container ./internal/daemon ./internal/glob \
	./internal/policy ./internal/top ./internal/tracker
emulated -skip '^Test(ListenPeers|Takeover(OfStopped|Race))$' ./internal/report
some ./internal/procscan Parse Field SplitCmdline NextPID Chain Hidden SnapshotCounts SnapshotNever \
	InspectGone InspectZombie InspectHostile 'Node$'
some ./internal/reaper Kills Reservation PerWorkload OneAtATime Changed LimitsAre Ladder Fresh Vanishes Identity Deferred \
	DryRun Cancel RateLimited Blind Waiting 'Rehearse$'
