#!/bin/bash
# Check the packages of one version in dist/: lintian, that .deb and .rpm hold the
# same, that they can be made again, and how much of the system the unit is exposed
# to. `make package-check` sets VERSION, COMMIT and NFPM.
set -euo pipefail
cd "$(dirname "$0")/../.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

lintian --no-cfg --tag-display-limit 0 --fail-on warning,error "dist/kzr_$VERSION"_*.deb

for rpm in "dist/kzr-$VERSION"-*.rpm; do
	arch=$(rpm -qp --qf '%{ARCH}' "$rpm" | sed 's/x86_64/amd64/; s/aarch64/arm64/')
	deb=dist/kzr_${VERSION}_$arch.deb
	# Only where their zsh and their tools look differs, and that rpm owns directories.
	rpm -qp --qf '[%{FILEMODES:perms} %{FILENAMES}\n]' "$rpm" | sed -n 's/^-[^ ]* //p' | grep -v ^/usr/share/licenses/ | sed s,/zsh/site-functions/,/zsh/vendor-completions/, | sort >"$scratch/rpm"
	dpkg-deb --fsys-tarfile "$deb" | tar -t | sed -n 's,^\.\(.*[^/]\)$,\1,p' | grep -v ^/usr/share/lintian/ | sort >"$scratch/deb"
	diff "$scratch/deb" "$scratch/rpm"
	[ "$(rpm -qpc "$rpm")" = /etc/kzr/kzr.yaml ]
	[ "$(dpkg-deb -I "$deb" conffiles)" = /etc/kzr/kzr.yaml ]
done
cat "$scratch/deb"

# The last one again, somewhere else: the same to the byte.
mkdir "$scratch/again"
tar -c --exclude=./.cache --exclude=./bin --exclude=./dist . | tar -xm -C "$scratch/again"
(umask 077 && TZ=Asia/Kolkata make -s -C "$scratch/again" package ARCHS="$arch" FORMATS="deb rpm" nfpm="$PWD/$NFPM") >/dev/null
for package in "$scratch"/again/dist/*.{deb,rpm}; do
	cmp "$package" "dist/${package##*/}"
done

# The unit as it is installed, and with each drop-in.
dpkg-deb -x "$deb" "$scratch/root"
grep -aqF "${COMMIT:-unknown}" "$scratch/root/usr/bin/kzr"
units=$scratch/root/usr/lib/systemd/system
install -D /bin/kill "$scratch/root/bin/kill" # what it runs must be there
systemd-analyze verify --root="$scratch/root" --man=no --recursive-errors=no kzr.service
for dropin in "" "$scratch"/root/usr/share/kzr/{cri,docker,metrics,on-action}.conf; do
	rm -rf "$units/kzr.service.d"
	[ -z "$dropin" ] || install -D -m 644 "$dropin" "$units/kzr.service.d/${dropin##*/}"
	limit=15
	case ${dropin##*/} in
	metrics.conf) limit=20 ;;
	on-action.conf) limit=22 ;;
	esac
	printf '%s ' "${dropin##*/}"
	systemd-analyze security --no-pager --offline=yes --root="$scratch/root" --threshold=$limit kzr.service | tail -n 1
done
