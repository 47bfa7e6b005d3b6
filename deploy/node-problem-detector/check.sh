#!/bin/bash
# The patterns against what a real kzr logs for the journal, and the conditions against a
# real kzr that runs, stands still and is gone.
#
#	check.sh KZR
set -euo pipefail
kzr=$(realpath "$1")
cd "$(dirname "$0")"
python3 -c 'import json, sys; [json.load(open(f)) for f in sys.argv[1:]]' ./*.json
export KZR_METRICS=127.0.0.1:$((20000 + $$ % 10000))
"$kzr" run --config=/dev/null --dry-run --socket= --cri= --metrics="$KZR_METRICS" --sweep-interval=1s 2>/dev/null &
pid=$!
trap 'kill -KILL $pid 2>/dev/null || true' EXIT
expect() { # STATUS TEXT ARGUMENT
	local out status=0
	out=$(./kzr-condition.sh "$3") || status=$?
	if [ $status != "$1" ] || [[ $out != *$2* ]]; then echo "$3: status $status, $out"; exit 1; fi
}
for _ in $(seq 100); do ./kzr-condition.sh sweeps >/dev/null && break; sleep .1; done
expect 0 "has pids left" pressure
expect 0 "watches" sweeps
kill -KILL $pid
wait $pid 2>/dev/null || true
expect 2 "does not answer" pressure
expect 1 "does not answer" sweeps

# Lines as kzr writes them for the journal.
python3 - <<'P'
import json, re
rules = json.load(open("kzr-log.json"))["rules"]
lines = {
    "ZombieParentTerminated": 'event=terminated msg="exited after SIGKILL" pid=1 workload=shop/web/app',
    "ZombieParentRemains": 'event=gave_up msg="still alive" pid=1',
    "ZombieKillLimitReached": 'event=spared msg="" pid=1 node=n reason=backoff until=2026-03-04T12:00:00.000Z',
    "ProtectedProcessLeaks": 'event=spared msg="" pid=1 node=n reason=protected',
    "KzrLimitsOverridden": 'event=signal msg="" pid=1 signal=SIGKILL dry_run=false limits_overridden=true',
    "KzrLostEvents": 'event=lost_events msg="" node=n',
}
for reason, line in lines.items():
    got = [r["reason"] for r in rules if re.search(r["pattern"] + r"\Z", line)]
    assert got == [reason], (line, got)
for line in ('event=suspect msg="" pid=1', 'event=spared msg="" reason=recovered', 'event=signal msg="" signal=SIGCHLD dry_run=true', 'event=reaped msg="" by=kzr'):
    assert not [r for r in rules if re.search(r["pattern"] + r"\Z", line)], line
P
echo "ok: patterns and conditions"
