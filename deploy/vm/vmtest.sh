#!/bin/bash
# Run the project's kernel tests, and the package under systemd, on the kernels
# of Debian 11, 12 and 13, each in a virtual machine without KVM.
#
#	deploy/vm/vmtest.sh [SUITE...] [tests|systemd]
#
# Kernels and root file systems are kept in VM_CACHE, by default
# /var/cache/kzr-vm, for all clones; the logs of the last run in .cache/vm. Needs
# root, the Go compiler, cc, qemu-system-x86_64, mmdebstrap, cpio.
set -euo pipefail
cd "$(dirname "$0")/../.."

cache=${VM_CACHE:-/var/cache/kzr-vm}
logs=$PWD/.cache/vm
suites=() parts=()
for arg; do
	case $arg in
	tests | systemd) parts+=("$arg") ;;
	*) suites+=("$arg") ;;
	esac
done
[ ${#suites[@]} -gt 0 ] || suites=(bullseye bookworm trixie)
[ ${#parts[@]} -gt 0 ] || parts=(tests systemd)

# What is for a real kernel to answer, and arguments for it. An emulated CPU is
# ten times slower: what measures time or needs a storm is left to `make test`.
kernel_tests() {
	cat <<-'END'
		probe -test.short
		procscan -test.skip=TestListWhileItsHeadGoes|TestSnapshotMemory|TestSnapshotInAStorm|TestVeryManyChildrenNeedAWalk
		reaper -test.skip=TestOutcomes/reaps_one_per_SIGCHLD_and_leaks_more
		tracker
		e2e -test.parallel=4 -test.run=Scenario(03|04|08|09|10|13|29|31)|Scenario28MachineFull
	END
}

# $(pack DIR): DIR as a cpio archive, on standard output.
pack() { (cd "$1" && find . | cpio --quiet -o -H newc -R 0:0); }

build_zoo() { cc -std=gnu17 -O2 -pthread -static -o "$1" internal/zoo/testdata/zoo.c; }

build_tests() {
	local dir=$1 package args
	mkdir -p "$dir/vm/tests"
	cp deploy/vm/tests.sh "$dir/vm/init"
	CGO_ENABLED=0 go build -trimpath -o "$dir/vm/kzr" ./cmd/kzr
	build_zoo "$dir/vm/zoo"
	while read -r package args; do
		CGO_ENABLED=0 go test -c -o "$dir/vm/tests/$package" "./internal/$package"
		echo "$package $args" >>"$dir/vm/tests/list"
	done < <(kernel_tests)
}

# The package, and a second one to upgrade to.
build_systemd() {
	local dir=$1
	mkdir -p "$dir/vm" "$dir/etc/systemd/system"
	make -s package VERSION=0.0.1 ARCHS=amd64 FORMATS=deb >/dev/null
	make -s package VERSION=0.0.2 ARCHS=amd64 FORMATS=deb >/dev/null
	mv dist/kzr_0.0.1*_amd64.deb "$dir/vm/old.deb"
	mv dist/kzr_0.0.2*_amd64.deb "$dir/vm/new.deb"
	build_zoo "$dir/vm/zoo"
	cp deploy/vm/guest.sh "$dir/vm/"
	cp deploy/vm/vmtest.service "$dir/etc/systemd/system/"
}

# boot NAME SUITE INIT: one virtual machine to its end.
boot() {
	local name=$1 suite=$2 init=$3
	rm -f "$logs/$name.log" "$logs/$name.console"
	cat "$cache/$suite/root.cpio" "$scratch/${name##*-}.cpio" >"$scratch/$name.initrd"
	# cx16 and the clock: 6.12 crashes at random in QEMU 7.2 with either.
	timeout -k 5 600 qemu-system-x86_64 -accel tcg,thread=multi -cpu max,-cx16 -smp 2 -m 1500 \
		-nodefaults -no-user-config -display none -no-reboot \
		-kernel "$cache/$suite/vmlinuz" -initrd "$scratch/$name.initrd" \
		-append "rdinit=$init console=ttyS0 panic=-1 quiet tsc=reliable systemd.unit=vmtest.service systemd.show_status=no" \
		-serial "file:$logs/$name.console" -serial "file:$logs/$name.log" || true
	rm -f "$scratch/$name.initrd"
}

verdict() { sed -n 's/^verdict: //p' "$logs/$1.log" 2>/dev/null | tr -d '\r' | tail -n 1; }
oops() { grep -qE 'Oops|BUG: |Kernel panic|general protection' "$logs/$1.console"; }

# run SUITE PART: boot it and say how it went. An emulator's kernel may crash:
# once more then. A test that fails has failed.
run() {
	local suite=$1 part=$2 name=$1-$2 init=/vm/init began=$SECONDS
	[ "$part" = tests ] || init=/lib/systemd/systemd
	boot "$name" "$suite" "$init"
	if [ -z "$(verdict "$name")" ] && oops "$name"; then
		echo "$name: the kernel crashed, once more"
		cp "$logs/$name.console" "$logs/$name.crash"
		boot "$name" "$suite" "$init"
	fi
	local passed skipped
	passed=$(grep -Ec '^ *--- PASS: |^ok ' "$logs/$name.log" || true)
	skipped=$(grep -Ec '^ *--- SKIP: ' "$logs/$name.log" || true)
	echo "$name: $(sed -n 's/^Linux //p' "$logs/$name.log" | tr -d '\r'): $(verdict "$name"): $passed passed, $skipped skipped, $((SECONDS - began)) s"
	[ "$(verdict "$name")" = passed ] && return
	# All but what passed.
	grep -aEv '^ *(=== |--- PASS: )' "$logs/$name.log" | tail -n 300
	tail -n 40 "$logs/$name.console"
	return 1
}

mkdir -p "$logs"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
images=()
for suite in "${suites[@]}"; do
	deploy/vm/debian.sh "$cache" "$suite" &
	images+=($!)
done
for part in "${parts[@]}"; do
	mkdir "$scratch/$part"
	case $part in
	tests) build_tests "$scratch/tests" ;;
	systemd) build_systemd "$scratch/systemd" ;;
	esac
	pack "$scratch/$part" >"$scratch/$part.cpio"
done
for pid in "${images[@]}"; do
	wait "$pid"
done

# Two at once: each of them mostly waits for the one CPU that it has work for.
failed=0
for part in "${parts[@]}"; do
	for suite in "${suites[@]}"; do
		while [ "$(jobs -rp | wc -l)" -ge 2 ]; do
			wait -n || failed=1
		done
		run "$suite" "$part" &
	done
done
while [ -n "$(jobs -p)" ]; do
	wait -n || failed=1
done
exit "$failed"
