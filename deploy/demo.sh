#!/bin/bash
# Shows the main job in 15 seconds: a sleep that is given orphans and does not know of
# them, a leaker and a well-behaved neighbour, each the init of a pid namespace of its
# own, and kzr beside them. It may act on the executables of the first two only, so
# nothing else on this node is touched. Leaves nothing behind. Run by `make demo`.
set -euo pipefail
cd "$(dirname "$0")/.."

dir=$(mktemp -d)
pids=()
cleanup() {
	if [ "${sleeper_keeper-}" ]; then # it leaves SIGTERM to its child
		kill -KILL "$sleeper_keeper" 2>/dev/null || true
		wait "$sleeper_keeper" 2>/dev/null || true
	fi
	# SIGTERM makes each of them end its own processes.
	for pid in "${pids[@]}"; do
		kill "$pid" 2>/dev/null || true
	done
	wait
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() {
	printf '\n\033[1m%s\033[0m\n' "$*"
}

# The init of the namespace that zoo's keeper $1 made, and its zombies.
init_of() {
	ps -o pid= --ppid "$1" | tr -d ' '
}
zombies_of() {
	ps -o stat= --ppid "$1" | awk '/^Z/ { n++ } END { print n + 0 }'
}

cc -std=gnu17 -O2 -pthread -static -o "$dir/leaker" internal/zoo/testdata/zoo.c
cp "$dir/leaker" "$dir/neighbour"
cp "$(command -v sleep)" "$dir/sleep"
cat >"$dir/kzr.yaml" <<YAML
threshold: 50
grace: 2s
nudge: 1s
termTimeout: 3s
socket: $dir/kzr.sock
rules:
- name: demo-sleep
  match: {exe: $dir/sleep}
- name: demo-leaker
  match: {exe: $dir/leaker}
- name: everything-else
  action: observe
YAML

say "kzr run: threshold 50, grace 2s, nudge 1s, termTimeout 3s"
bin/kzr run --config "$dir/kzr.yaml" > >(tee "$dir/log") 2>&1 &
pids+=($!)
for ((i = 0; i < 100; i++)); do
	grep -q event=started "$dir/log" 2>/dev/null && break
	sleep 0.1
done

say "A sleep that is pid 1 is given 60 orphans, a container init that never waits makes 60 zombies; a neighbour reaps its own."
# A job whose shell has ended is an orphan, and pid 1 gets it.
# shellcheck disable=SC2016 # for the other shell
unshare --pid --fork --kill-child "$(command -v sh)" -c 'for i in $(seq 60); do ("$0" 0.3 &); done; exec "$0" 1000' "$dir/sleep" </dev/null &
sleeper_keeper=$!
pids+=("$sleeper_keeper")
"$dir/leaker" in=pidns,proc comm=leaker term=count leak=60 serve </dev/null &
leaker_keeper=$!
pids+=("$leaker_keeper")
"$dir/neighbour" in=pidns,proc comm=neighbour fresh=30,age=500 serve </dev/null &
neighbour_keeper=$!
pids+=("$neighbour_keeper")
sleep 1
sleeper=$(init_of "$sleeper_keeper")
leaker=$(init_of "$leaker_keeper")
neighbour=$(init_of "$neighbour_keeper")
ps -o pid,ppid,stat,comm -p "$sleeper" -p "$leaker" -p "$neighbour"
echo "zombies of sleep: $(zombies_of "$sleeper"), of the leaker: $(zombies_of "$leaker"), of the neighbour: $(zombies_of "$neighbour")"

for ((i = 0; i < 150; i++)); do
	[ -e "/proc/$leaker" ] || [ "$(zombies_of "$sleeper")" -gt 0 ] || break
	sleep 0.1
done
sleep 1 # for kzr to say what became of the zombies

say "After $((1 + i / 10)).$((i % 10)) seconds"
if [ -e "/proc/$leaker" ]; then
	echo "the leaker (pid $leaker) still lives, with $(zombies_of "$leaker") zombies"
	exit 1
fi
status=0
wait "$leaker_keeper" || status=$?
echo "the leaker is gone (exit status $status) and its zombies with it"
if [ -e "/proc/$sleeper" ]; then
	echo "sleep (pid $sleeper) lives, with $(zombies_of "$sleeper") zombies: kzr reaped inside it"
	[ "$(zombies_of "$sleeper")" = 0 ]
else
	echo "sleep (pid $sleeper) is gone: kzr cannot reap inside processes here, see kzr check"
	grep -q 'reap="off' "$dir/log"
fi
if [ "$(init_of "$neighbour_keeper")" != "$neighbour" ]; then
	echo "the neighbour was harmed"
	exit 1
fi
echo "the neighbour (pid $neighbour) is alive, and reaps"
