#!/bin/bash
# Run the project's kernel tests, and the package under systemd, on the kernels
# of Debian 11, 12 and 13, each in a virtual machine without KVM. The suite
# arm64, which has to be asked for, is the tests on Debian 12's kernel for arm64.
#
#	deploy/vm/vmtest.sh [SUITE...] [tests|systemd]
#	deploy/vm/vmtest.sh images [SUITE...]    only makes what they boot
#
# Kernels and root file systems are kept in VM_CACHE, by default
# /var/cache/kzr-vm, for all clones; the logs of the last run in .cache/vm. Needs
# root, the Go compiler, cc, qemu-system-x86_64, mmdebstrap, cpio, Debian's archive
# and its keys; for arm64, qemu-system-aarch64 and aarch64-linux-gnu-gcc.
set -euo pipefail
cd "$(dirname "$0")/../.."

cache=${VM_CACHE:-/var/cache/kzr-vm}
logs=$PWD/.cache/vm
suites=() parts=() only_images=
for arg; do
	case $arg in
	images) only_images=yes ;;
	tests | systemd) parts+=("$arg") ;;
	*) suites+=("$arg") ;;
	esac
done
[ ${#suites[@]} -gt 0 ] || suites=(trixie bookworm bullseye)
[ ${#parts[@]} -gt 0 ] || parts=(tests systemd)

# $(arch SUITE)
arch() { [ "$1" = arm64 ] && echo arm64 || echo amd64; }

runs=() last=()
for part in "${parts[@]}"; do
	for suite in "${suites[@]}"; do
		case "$suite $part" in
		"arm64 tests") last=("$suite $part") ;;
		"arm64 systemd") ;;
		*) runs+=("$suite $part") ;;
		esac
	done
done
runs+=("${last[@]}")
[ ${#runs[@]} -gt 0 ] || { echo >&2 "${0##*/}: there are only tests for arm64" && exit 1; }

# kernel_tests ARCH: what is for a real kernel to answer, and arguments for it. An
# emulated CPU is ten times slower: what measures time or needs a storm is left to
# `make test`. The emulated arm64 machine cannot suspend.
kernel_tests() {
	local skip='' reapinside='reapinside -test.short -test.run=TestScenario57BlockingCalls|TestScenario58(Refusals|SignalsMeanwhile|EndsMeanwhile)|TestConfined|TestMalformed'
	[ "$1" = amd64 ] || skip=-test.skip=Scenario31Suspend reapinside=reapinside
	cat <<-END
		confine
		probe -test.short
		procscan -test.skip=TestListWhileItsHeadGoes|TestSnapshotMemory|TestSnapshotsAreForgotten|TestSnapshotInAStorm|TestVeryManyChildrenNeedOneWalk|TestSnapshotOfACrowdWithGroups|TestFactsOf(ASlowProcess|ThreadsThatComeAndGo)
		reaper -test.skip=TestOutcomes/reaps_one_per_SIGCHLD_and_leaks_more|TestReapsOneAtATime
		tracker
		$reapinside
		e2e -test.parallel=6 -test.run=Scenario(04|08|09|10|31)|Scenario(28|41)MachineFull|Scenario29ContainerAtItsPidsMax/ebpf|Scenario40SpreadIsFreed/ebpf/one|Scenario47Foreign/ebpf $skip
	END
}

# $(pack DIR): DIR as a cpio archive, on standard output.
pack() { (cd "$1" && find . | cpio --quiet -o -H newc -R 0:0); }

# compile FILE SOURCE ARGUMENT...: with $cc, for any of the systems.
compile() { "${cc:-cc}" -std=gnu17 -O2 -static -o "$1" "internal/$2" "${@:3}"; }
build_zoo() { compile "$1" zoo/testdata/zoo.c -pthread; }

# build_tests DIR ARCH
build_tests() {
	local dir=$1 package args
	local -x GOARCH=$2 CGO_ENABLED=0
	mkdir -p "$dir/vm/tests"
	cp deploy/vm/tests.sh "$dir/vm/init"
	go build -trimpath -buildvcs=false -o "$dir/vm/kzr" ./cmd/kzr
	go build -trimpath -buildvcs=false -o "$dir/vm/confined" ./internal/confine/testdata/daemon
	local cc=cc bare=(-nostdlib -fno-stack-protector -fno-pie -no-pie)
	[ "$GOARCH" = amd64 ] || cc=aarch64-linux-gnu-gcc
	build_zoo "$dir/vm/zoo"
	mkdir "$dir/vm/compiled"
	compile "$dir/vm/compiled/hostile" procscan/testdata/hostile.c -pthread
	if [ "$GOARCH" = amd64 ]; then
		compile "$dir/vm/compiled/victim" reapinside/testdata/victim.c -pthread -mno-red-zone -DMS=4000
		compile "$dir/vm/compiled/bare" reapinside/testdata/bare.c "${bare[@]}"
		compile "$dir/vm/compiled/bare32" reapinside/testdata/bare.c -m32 "${bare[@]}"
	fi
	while read -r package args; do
		go test -c -ldflags='-s -w' -o "$dir/vm/tests/$package" "./internal/$package"
		echo "$package $args" >>"$dir/vm/tests/list"
	done < <(kernel_tests "$GOARCH")
}

# The package, and a second one to upgrade to.
build_systemd() {
	local dir=$1
	mkdir -p "$dir/vm" "$dir/etc/systemd/system"
	DIST=$scratch/old make -s package VERSION=0.0.1 ARCHS=amd64 >/dev/null
	DIST=$scratch/new make -s package VERSION=0.0.2 ARCHS=amd64 >/dev/null
	mv "$scratch"/old/*.deb "$dir/vm/old.deb"
	mv "$scratch"/new/*.deb "$dir/vm/new.deb"
	mv "$scratch"/old/*.rpm "$dir/vm/old.rpm"
	mv "$scratch"/new/*.rpm "$dir/vm/new.rpm"
	build_zoo "$dir/vm/zoo"
	cp deploy/vm/guest.sh "$dir/vm/"
	cp deploy/vm/vmtest.service "$dir/etc/systemd/system/"
}

# boot NAME SUITE INIT: one virtual machine to its end.
boot() {
	local name=$1 suite=$2 init=$3
	rm -f "$logs/$name.log" "$logs/$name.console"
	cat "$cache/$suite/root.cpio" "$scratch/$(arch "$suite")-${name##*-}.cpio" >"$scratch/$name.initrd"
	local qemu machine console
	case $(arch "$suite") in
	amd64)
		# A plain CPU is the fastest to emulate, but a way back out of wait4 takes XSAVE (and Linux
		# XSAVEOPT, or it does not boot). With
		# cx16, or the time stamp counter watched, 6.12 crashes at random in QEMU 7.2.
		qemu=qemu-system-x86_64 console=ttyS0
		machine=(-cpu "qemu64,-cx16,+xsave,+xsaveopt" -serial "file:$logs/$name.log")
		;;
	arm64)
		# Not max, for which QEMU would work out pointer authentication. The second
		# port of this card is ttyS1, as a PC's own.
		qemu=qemu-system-aarch64 console=ttyAMA0
		machine=(-M virt -cpu cortex-a72 -device "pci-serial-2x,chardev1=none,chardev2=log"
			-chardev "null,id=none" -chardev "file,id=log,path=$logs/$name.log")
		;;
	esac
	# One thread for both CPUs: there are more machines than cores, and with two QEMU
	# before 8.1 now and then runs code that the kernel has just patched.
	timeout -k 5 900 "$qemu" -accel tcg,thread=single -smp 2 -m 1500 \
		-nodefaults -no-user-config -display none -no-reboot -serial "file:$logs/$name.console" "${machine[@]}" \
		-kernel "$cache/$suite/vmlinuz" -initrd "$scratch/$name.initrd" \
		-append "rdinit=$init console=$console panic=-1 quiet mitigations=off init_on_alloc=0 nokaslr tsc=reliable systemd.unit=vmtest.service systemd.show_status=no" || true
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
	echo "$name: $(sed -n 's/^Linux //p' "$logs/$name.log" | tr -d '\r'): $(verdict "$name"): $passed passed, $skipped skipped, $((SECONDS - began)) s, $SECONDS s after the start"
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
if [ "$only_images" ]; then
	for pid in "${images[@]}"; do
		wait "$pid"
	done
	exit
fi
for run in "${runs[@]}"; do
	read -r suite part <<<"$run"
	payload=$scratch/$(arch "$suite")-$part
	[ ! -e "$payload" ] || continue
	mkdir "$payload"
	case $part in
	tests) build_tests "$payload" "$(arch "$suite")" ;;
	systemd) build_systemd "$payload" ;;
	esac
	pack "$payload" >"$payload.cpio"
done
for pid in "${images[@]}"; do
	wait "$pid"
done

# Three at once on two cores: each waits for something a third of its time. What takes
# longest, trixie's, comes first.
failed=0
for run in "${runs[@]}"; do
	while [ "$(jobs -rp | wc -l)" -ge 3 ]; do
		wait -n || failed=1
	done
	read -r suite part <<<"$run"
	run "$suite" "$part" &
done
while [ -n "$(jobs -p)" ]; do
	wait -n || failed=1
done
echo "$SECONDS s in all"
exit "$failed"
