#!/bin/sh
# The first and only program of a virtual machine: runs the kernel tests in
# /vm/tests and reports on the second serial port. The last line is the verdict.
exec >/dev/null 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C GOTRACEBACK=all
export KZR_ZOO=/vm/zoo KZR_BIN=/vm/kzr KZR_CONFINED=/vm/confined KZR_COMPILED=/vm/compiled KZR_OWN_MACHINE=1

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo '+pids +memory +cpu' >/sys/fs/cgroup/cgroup.subtree_control
# There is no ip: SIOCSIFFLAGS, up and running.
perl -e 'socket(my $s, 2, 1, 0); my $r = pack("a16 s x22", "lo", 0x41); ioctl($s, 0x8914, $r)'
# Little memory makes for a small limit, below what some tests fill.
echo 100000 >/proc/sys/kernel/threads-max
exec >/dev/ttyS1 2>&1
# shellcheck disable=SC3045 # dash has it
ulimit -n 65536

echo "Linux $(uname -r)"
verdict=passed
# One `TEST ARGUMENT...` a line.
while read -r test args; do
	echo "==== $test"
	# shellcheck disable=SC2086 # they are several
	(cd /vm/tests && exec "./$test" -test.v -test.timeout=9m $args </dev/null) || verdict=FAILED
done </vm/tests/list
echo "verdict: $verdict"
sleep 1 # for the serial port
echo b >/proc/sysrq-trigger
