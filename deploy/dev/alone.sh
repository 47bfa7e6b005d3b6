#!/bin/bash
# Run a program in a pid namespace of its own, so that it sees no processes but those
# that it makes, and others do not mind them: `go test -exec deploy/dev/alone.sh`. Its
# first process is a shell that reaps what falls to it.
set -eu
[ "$$" = 1 ] || exec unshare --pid --fork --kill-child --mount-proc "$0" "$@"
"$@" &
status=0
wait $! || status=$?
exit "$status"
