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

# zoo: the packages whose tests make processes for kzr to see, with internal/zoo;
# others: the other ones.
list() {
	go list -f '{{.ImportPath}} {{join .TestImports " "}} {{join .XTestImports " "}}' ./... |
		awk -v zoo="$1" '(/ kzr\/internal\/zoo( |$)/ ? "zoo" : "others") == zoo { print $1 }'
}

case ${1-} in
hostile)
	KZR_SOAK=${DURATION:-2m} run -timeout 0 -run "$hostile" ./internal/e2e
	;;
which-hostile) echo "$hostile" ;;
"")
	# Compiling takes both cores, and tests have clocks: so it comes first.
	go test -race -exec true ./... >/dev/null 2>&1 || true
	failed=0
	# These make nothing that another one sees, and mostly wait.
	mapfile -t others < <(list others)
	run -p 4 "${others[@]}" || failed=1
	# There is one process table: a daemon under test would act on another package's
	# leaker. So one at a time.
	mapfile -t zoo < <(list zoo)
	run -p 1 -skip "$hostile" "${zoo[@]}" || failed=1
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
