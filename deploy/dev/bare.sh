#!/bin/bash
# Run a command in this tree on a Debian made from nothing, with make and git, on
# this kernel: what a new machine does.
#
#	bare.sh [SUITE [COMMAND...]]
#
# SUITE is bookworm if not said, COMMAND two-commands.sh. The file system is kept in VM_CACHE, by default /var/cache/kzr-vm,
# for the next time; the tree, with what is not committed, is copied into a fresh one.
set -euo pipefail
cd "$(dirname "$0")/../.."

suite=${1-bookworm}
shift || true
cache=${VM_CACHE:-/var/cache/kzr-vm}
image=$cache/bare-$suite.tar
if [ ! -e "$image" ]; then
	mkdir -p "$cache"
	mmdebstrap --quiet --variant=minbase --include=make,git "$suite" "$image.new.tar"
	mv "$image.new.tar" "$image"
fi

root=$(mktemp -d /var/tmp/kzr-bare-XXXXXX)
trap 'rm -rf --one-file-system "$root"' EXIT
tar -C "$root" -xf "$image" --exclude=./dev
mkdir -p "$root"/{kzr,dev,old}
git ls-files -z --cached --others --exclude-standard | tar -c --null --ignore-failed-read -T - 2>/dev/null | tar -x -C "$root/kzr"
cp -r "$(git rev-parse --git-common-dir)" "$root/kzr/.git"
git rev-parse HEAD >"$root/kzr/.git/HEAD"
cp /etc/resolv.conf "$root/etc/"
# Whom this machine trusts besides, as a proxy in its way.
cp -r /usr/local/share/ca-certificates "$root/usr/local/share/" 2>/dev/null || true

[ $# -gt 0 ] || set -- deploy/dev/two-commands.sh
# The pid namespace stays the machine's, which eBPF wants; and a new root, not chroot:
# of that the kernel tells more than a process sees.
# shellcheck disable=SC2016 # for the other shell
unshare --mount --propagation private bash -euc '
	root=$1
	shift
	mount --bind "$root" "$root"
	mount --rbind /dev "$root/dev"
	mount -t proc proc "$root/proc"
	mount --rbind /sys "$root/sys"
	mount -t tmpfs tmpfs "$root/run"
	mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
	cd "$root"
	pivot_root . old
	umount -l /old
	cd /kzr
	exec env -i HOME=/root TERM=dumb LC_ALL=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		"$@"
' bash "$root" "$@"
