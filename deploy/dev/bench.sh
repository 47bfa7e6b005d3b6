#!/bin/bash
# Set kzr beside what an operator could use instead.
#
#	bench.sh [--quick] [NAME]
#
# All of it writes docs/BENCHMARKS.md, which takes half an hour on a machine with nothing
# else to do. --quick makes few rounds at small sizes, to see that all of it runs, and
# NAME, a regular expression, chooses among the benchmarks: both write nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
quick=''
[ "${1-}" != --quick ] || { quick=1 && shift; }
name=${1:-.}

# The services of these packages are not wanted, so they are not installed.
peers=.cache/peers
mkdir -p "$peers"
others=(prometheus-node-exporter prometheus-process-exporter earlyoom)
for package in "${others[@]}"; do
	compgen -G "$peers/${package}_*.deb" >/dev/null && continue
	apt-get -qq update
	(cd "$peers" && apt-get -qq -o APT::Sandbox::User=root download "${others[@]}")
	break
done
for deb in "$peers"/*.deb; do
	dpkg-deb -x "$deb" "$peers/root"
done

if [ -n "$quick" ]; then
	out=$(mktemp -d)
	trap 'rm -rf "$out"' EXIT
	export KZR_BENCH=quick KZR_BENCH_REPORT=$out
elif [ "$name" = . ]; then
	export KZR_BENCH_REPORT=$PWD/docs
fi
[ "$name" = . ] || unset KZR_BENCH_REPORT
export KZR_PEERS=$PWD/$peers KZR_COMMIT
KZR_COMMIT=$(git --git-dir=.git rev-parse --short HEAD 2>/dev/null || echo unknown) # the clone may be somebody else's
# bpftrace and exitsnoop look for their tracepoint in a file system that may not be mounted.
CGO_ENABLED=0 unshare --mount bash -c '
	mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
	mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
	exec "$@"
' bash go test -count=1 -run '^$' -bench "$name" -benchtime 1x -timeout 2h ./internal/bench
