#!/bin/bash
# The two commands that the README begins with, as root in a fresh clone, where nothing
# is installed but make and git. Arguments are TESTFLAGS.
set -euo pipefail
cd "$(dirname "$0")/../.."

make build # with all that it fetches
# It watches this machine, and signals nobody.
timeout 10 make run ARGS="--dry-run --socket=/run/kzr-bare.sock" >/tmp/said 2>&1 || [ $? = 124 ]
cat /tmp/said
grep -q 'event=started' /tmp/said
make test TESTFLAGS="$*"
