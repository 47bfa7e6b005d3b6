#!/bin/bash
# Run all that is to be survived, at length, and write docs/RELIABILITY.md, even if a
# test fails: it says so.
set -euo pipefail
cd "$(dirname "$0")/../.."

# The storms, faults and soak, as in test.sh. The half million zombies of the storm
# take 5 GB of the kernel's memory. Where pids change hands, kzr is stopped at each
# system call: so no storm beside it.
hostile=$(deploy/dev/test.sh which-hostile)
export KZR_SOAK=$DURATION KZR_REUSE=${KZR_REUSE:-2000} KZR_STORM=${KZR_STORM:-500000} KZR_INSIDE=${KZR_INSIDE:-1m}
export KZR_FLASH_SECONDS=60 KZR_HOSTILE_SECONDS=60 KZR_STOP_SECONDS=60
mkdir -p .cache
rm -f .cache/vm/*-tests.log
make vmtest ARGS="trixie bookworm bullseye arm64 tests" || true
for tests in "./internal/reapinside ./internal/runtimes" "-skip $hostile ./internal/e2e" \
	"-run $hostile -skip ^TestScenario11 ./internal/e2e" "-run ^TestScenario11 ./internal/e2e"; do
	# shellcheck disable=SC2086 # they are several
	go test -json -p 1 -count=1 -timeout 0 $tests || true
done >.cache/reliability.json
KZR_COMMIT=$(git --git-dir=.git rev-parse --short HEAD) go run ./internal/reliability .cache/vm/*-tests.log <.cache/reliability.json >docs/RELIABILITY.md
