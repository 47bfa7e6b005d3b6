#!/bin/bash
# Install what is missing of what a target needs, on Debian and Ubuntu.
#
#	need.sh NAME...
#
# NAME is a command, or the package for what is no command; root is that one is root.
set -euo pipefail

# $(packages NAME): those that bring it.
packages() {
	case $1 in
	cc) echo gcc libc6-dev ;;
	go) echo golang-go ;;
	ps) echo procps ;;
	node) echo nodejs ;;
	java | javac) echo default-jdk-headless ;;
	llvm-strip) echo llvm ;;
	dockerd) echo docker.io ;;
	systemd-analyze) echo systemd ;;
	qemu-system-x86_64) echo qemu-system-x86 ;;
	qemu-system-aarch64) echo qemu-system-arm ;;
	qemu-aarch64-static) echo qemu-user-static ;;
	aarch64-linux-gnu-gcc) echo gcc-aarch64-linux-gnu libc6-dev-arm64-cross ;;
	readelf) echo binutils ;;
	ip) echo iproute2 ;;
	exitsnoop) echo libbpf-tools ;;
	promtool) echo prometheus ;;
	ansible-playbook) echo ansible-core ;;
	*) echo "$1" ;;
	esac
}

there() {
	case $1 in
	root) [ "$(id -u)" = 0 ] || { echo >&2 "this needs root" && exit 1; } ;;
	ca-certificates) [ -e /etc/ssl/certs/ca-certificates.crt ] ;;
	debian-archive-keyring) [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] ;;
	containernetworking-plugins) [ -e /usr/lib/cni/bridge ] ;;
	busybox-static) [ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1 ;; # busybox is not
	python3-yaml) python3 -c 'import yaml' 2>/dev/null ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

missing=()
for name; do
	# shellcheck disable=SC2207 # words
	there "$name" || missing+=($(packages "$name"))
done
[ ${#missing[@]} -gt 0 ] || exit 0
command -v apt-get >/dev/null || { echo >&2 "not installed: ${missing[*]}" && exit 1; }
[ "$(id -u)" = 0 ] || { echo >&2 "not installed, which takes root: ${missing[*]}" && exit 1; }
exec 9>/run/kzr-need.lock && flock 9 # several targets may be at it
export DEBIAN_FRONTEND=noninteractive
# Debian's packages start what they bring as a service; the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi
apt-get -qq update
apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
