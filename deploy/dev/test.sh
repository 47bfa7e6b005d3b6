#!/bin/bash
# Run the tests with the race detector, with TESTFLAGS.
#
#	test.sh                  all but the hostile ones
#	test.sh hostile          those: storms, faults, and DURATION of soak
#	test.sh which-hostile    prints the pattern of their names
#
# Storms and the soak have deadlines that only a machine with nothing else to do can
# hold: so they are apart.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CGO_ENABLED=1

hostile='^Test(Soak|Fault|Scenario(11|22|23|28|29|33|34))'

# TESTFLAGS are several.
# shellcheck disable=SC2086
run() { go test -race -count=1 "$@" ${TESTFLAGS-}; }

# Packages whose tests make processes for kzr to see, and see no others: each can have
# a pid namespace of its own. These tests of theirs are about the machine's.
alone='daemon|observer|policy|procscan|reaper|zoo'
machine='^Test(InspectKernelThread|Host|ViewOfAnotherUser)$'

# $(list KIND): the packages that are alone, that are on the machine with their
# processes, and that make none.
list() {
	go list -f '{{.ImportPath}} {{join .TestImports " "}} {{join .XTestImports " "}}' ./... |
		awk -v kind="$1" -v alone="^kzr/internal/($alone)\$" '
			{ is = / kzr\/internal\/zoo( |$)/ || $1 ~ /internal\/(zoo|reapinside)$/ ? ($1 ~ alone ? "alone" : "machine") : "none" }
			is == kind { print $1 }'
}

case ${1-} in
hostile)
	KZR_SOAK=${DURATION:-2m} run -timeout 0 -run "$hostile" ./internal/e2e
	;;
which-hostile) echo "$hostile" ;;
"")
	# Compiling takes both cores, and tests have clocks: so it comes first.
	go test -race -exec true ./... >/dev/null 2>&1 || true
	mapfile -t none < <(list none)
	mapfile -t apart < <(list alone)
	mapfile -t together < <(list machine)
	failed=0
	# Side by side, as these mostly wait, and none sees another one's processes.
	said=$(mktemp)
	trap 'rm -f "$said"' EXIT
	run -p 2 -exec "$PWD/deploy/dev/alone.sh" -skip "$machine" "${apart[@]}" >"$said" 2>&1 &
	run -p 3 "${none[@]}" || failed=1
	wait $! || failed=1
	cat "$said"
	# There is one process table: a daemon under test would act on another package's
	# leaker. So one at a time.
	run -p 1 -run "$machine" "${apart[@]}" || failed=1
	run -p 1 -skip "$hostile" "${together[@]}" || failed=1
	for p in containerd dockerd podman runc; do
		command -v "$p" >/dev/null || echo "not tested with $p, which is not installed: see make test-runtimes"
	done
	exit "$failed"
	;;
*)
	echo >&2 "usage: $0 [hostile|which-hostile]"
	exit 2
	;;
esac
