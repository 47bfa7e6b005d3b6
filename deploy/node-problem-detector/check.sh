#!/bin/bash
# The conditions against a real kzr that runs, takes the node for nearly full, and is
# gone; it only looks. The patterns against what a real kzr, alone in a pid namespace with
# processes that leak, writes to the journal, in whose place a socket of this test's is.
# Needs root and python3.
#
#	check.sh KZR
set -euo pipefail
kzr=$(realpath "$1")
cd "$(dirname "$0")"

# In the namespaces: $dir/messages is what journald would get.
if [ "$$" = 1 ]; then
	dir=$KZR_CHECK_DIR
	mount -t tmpfs tmpfs /run
	mkdir -p /run/systemd/journal
	python3 - "$dir/messages" <<'P' &
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind("/run/systemd/journal/socket")
with open(sys.argv[1], "w", buffering=1) as f:
    while True:
        fields = dict(l.split("=", 1) for l in s.recv(1 << 18).decode().splitlines())
        f.write(fields["MESSAGE"] + "\n")
P
	until [ -S /run/systemd/journal/socket ]; do sleep .1; done
	cp /bin/sleep "$dir/protected"
	cat >"$dir/kzr.yaml" <<-Y
		scope: all
		grace: 1s
		nudge: 0
		reap: off
		termTimeout: 1s
		sweepInterval: 1s
		limits: {perWorkload: {kills: 1, window: 1h}}
		protect: [$dir/protected]
		cri: ""
		socket: ""
	Y
	touch "$dir/stderr"
	stream=$(stat -c %d:%i "$dir/stderr")
	start() { JOURNAL_STREAM=$stream "$kzr" run --config="$dir/kzr.yaml" "$@" 2>>"$dir/stderr" & }
	leak() { sh -c 'i=0; while [ $i -lt 60 ]; do sleep 1 & i=$((i+1)); done; exec "$0" 1000' "$1" & }
	said() {
		for _ in $(seq 300); do ! grep -q "$1" "$dir/messages" || return 0; sleep .1; done
		echo "kzr did not say $1:"; cat "$dir/messages" "$dir/stderr"; return 1
	}
	start
	leak sleep
	said event=terminated
	leak sleep
	said reason=backoff
	leak "$dir/protected"
	said reason=protected
	kill %2
	start --dry-run
	said event=gave_up
	exit
fi

export KZR_CHECK_DIR
KZR_CHECK_DIR=$(mktemp -d)
trap 'kill -KILL $pid 2>/dev/null || true; rm -rf "$KZR_CHECK_DIR"' EXIT
export KZR_METRICS=127.0.0.1:$((20000 + $$ % 10000))
start() {
	"$kzr" run --config=/dev/null --dry-run --socket= --cri= --metrics="$KZR_METRICS" --sweep-interval=1s "$@" 2>/dev/null &
	pid=$!
	for _ in $(seq 100); do ! ./kzr-condition.sh sweeps >/dev/null || break; sleep .1; done
}
end() {
	kill -KILL "$pid"
	wait "$pid" 2>/dev/null || true
}
expect() { # STATUS TEXT ARGUMENT
	local out status=0
	out=$(./kzr-condition.sh "$3") || status=$?
	if [ $status != "$1" ] || [[ $out != *$2* ]]; then echo "$3: status $status, $out"; exit 1; fi
}
start
expect 0 "has pids left" pressure
expect 0 "watches" sweeps
end
expect 2 "does not answer" pressure
expect 1 "does not answer" sweeps
start --pressure=0.0001 # of some ten thousand: a few processes are enough
expect 1 "almost out of pids" pressure
end

unshare --pid --fork --kill-child --mount --mount-proc "$PWD/check.sh" "$kzr"
python3 - "$KZR_CHECK_DIR/messages" <<'P'
import json, re, sys
json.load(open("kzr-condition.json"))
rules = json.load(open("kzr-log.json"))["rules"]
matched = lambda line: [r["reason"] for r in rules if re.search(r["pattern"] + r"\Z", line)]
want = lambda line: (
    "ZombieParentTerminated" if "event=terminated" in line else
    "ZombieParentRemains" if "event=gave_up" in line else
    "ZombieKillLimitReached" if "event=spared" in line and "reason=backoff" in line else
    "ProtectedProcessLeaks" if "event=spared" in line and "reason=protected" in line else None)
seen = set()
for line in open(sys.argv[1]).read().splitlines():
    reason = want(line)
    assert matched(line) == [reason] * bool(reason), (line, matched(line))
    seen.add(reason)
# These take a node that is full and a kernel that is too fast: the lines are made up.
for reason, line in {"KzrLimitsOverridden": 'event=signal msg="" pid=1 signal=SIGKILL dry_run=false limits_overridden=true',
                     "KzrLostEvents": 'event=lost_events msg="" node=n'}.items():
    assert matched(line) == [reason], (line, matched(line))
    seen.add(reason)
assert seen == {r["reason"] for r in rules} | {None}, seen
P
echo "ok: patterns and conditions"
