#!/bin/bash
# Fetch what `make vmtest` boots: Debian's cloud kernels and, for each, a root
# file system of the same release with systemd; for the suite arm64, that of
# bookworm for this processor, without systemd. From whatever Debian mirror the
# machine's apt uses, other suites; or from those in DEBIAN_MIRROR and
# DEBIAN_SECURITY_MIRROR, as on a machine that is not Debian.
#
#	debian.sh CACHE SUITE    makes CACHE/SUITE/vmlinuz and CACHE/SUITE/root.cpio
#
# What is there is not fetched again unless this script has changed; remove it to
# have it renewed.
set -euo pipefail

cache=$1 suite=$2
dir=$cache/$suite
arch=amd64 release=$suite
[ "$suite" != arm64 ] || arch=arm64 release=bookworm

# $(mirror PATH VARIABLE): the first of apt's Debian mirrors whose URL ends like that.
mirror() {
	# shellcheck disable=SC2016 # apt's own variable
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' |
		sed 's,/*$,,' | grep -m1 "$1\$" && return
	echo >&2 "${0##*/}: apt knows no mirror of Debian's archive that ends in $1: run apt-get update, or, if this is not Debian, name one in $2"
	return 1
}

# An apt of its own for one suite: nothing of the machine's is touched.
setup_apt() {
	local main security keys=/usr/share/keyrings/debian-archive-keyring.gpg
	main=${DEBIAN_MIRROR:-$(mirror /debian DEBIAN_MIRROR)}
	security=${DEBIAN_SECURITY_MIRROR:-$(mirror /debian-security DEBIAN_SECURITY_MIRROR)}
	[ -e "$keys" ] || { echo >&2 "${0##*/}: needs the package debian-archive-keyring" && exit 1; }
	mkdir -p "$dir/apt/lists/partial" "$dir/apt/archives/partial"
	: >"$dir/apt/status"
	cat >"$dir/apt/sources.list" <<-END
		deb [signed-by=$keys] $main $release main
		deb [signed-by=$keys] $security $release-security main
	END
	cat >"$dir/apt/apt.conf" <<-END
		Dir::State "$dir/apt";
		Dir::State::status "$dir/apt/status";
		Dir::Cache "$dir/apt";
		Dir::Etc::sourcelist "$dir/apt/sources.list";
		Dir::Etc::sourceparts "-";
		APT::Architecture "$arch";
		APT::Architectures "$arch";
	END
	export APT_CONFIG=$dir/apt/apt.conf
	apt-get -qq update
}

kernel() {
	local package
	package=$(apt-cache depends "linux-image-cloud-$arch" | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
	(cd "$dir" && rm -f ./*.deb && apt-get -qq download "$package")
	dpkg-deb --fsys-tarfile "$dir"/linux-image-*.deb | tar -xO --wildcards './boot/vmlinuz-*' >"$dir/vmlinuz.new"
	rm "$dir"/*.deb
	mv "$dir/vmlinuz.new" "$dir/vmlinuz"
}

# No documentation, no locales, no apt lists: it is unpacked into memory. In the
# older releases rpm would bring 80 MB with it.
root() {
	local content=(--variant=essential --include="systemd,systemd-sysv,dbus,procps")
	[ "$suite" != trixie ] || content+=(--include=rpm)
	# A package's scripts cannot run on another processor: only its files
	# and, below, a link.
	[ "$arch" = amd64 ] || content=(--variant=extract --skip=check/qemu --include='?essential' --include='mount,procps')
	mmdebstrap --quiet --architectures="$arch" "${content[@]}" \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/i18n/*' \
		"$release" "$dir/root.tar" "$dir/apt/sources.list"
	rm -rf "$dir/root"
	mkdir "$dir/root"
	tar -C "$dir/root" -xf "$dir/root.tar" --exclude=./dev/*
	[ "$arch" = amd64 ] || ln -s mawk "$dir/root/usr/bin/awk"
	(cd "$dir/root" && find . | cpio --quiet -o -H newc) >"$dir/root.cpio.new"
	rm -rf "$dir/root" "$dir/root.tar"
	mv "$dir/root.cpio.new" "$dir/root.cpio"
}

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
recipe=$(cksum <"$0")
[ "$(cat "$dir/recipe" 2>/dev/null)" = "$recipe" ] || rm -f "$dir/root.cpio"
[ ! -e "$dir/vmlinuz" ] || [ ! -e "$dir/root.cpio" ] || exit 0
setup_apt
[ -e "$dir/vmlinuz" ] || kernel
[ -e "$dir/root.cpio" ] || root
echo "$recipe" >"$dir/recipe"
