#!/bin/sh
# The version of this tree, for deb and rpm. Of a tag v1.2.3-rc1 it is 1.2.3~rc1, which
# both sort before 1.2.3; of the fifth commit after that 1.2.3~rc1+5.gabcdef0. Before
# any tag, all commits count.
cd "$(dirname "$0")/../.." || exit
# The clone may be somebody else's, whom git would not trust: it looks here only.
git() { command git --git-dir=.git "$@" 2>/dev/null; }
{ git describe --tags --match 'v[0-9]*' --abbrev=7 ||
	echo "v0.1.0-$(git rev-list --count HEAD)-g$(git rev-parse --short=7 HEAD)"; } |
	sed 's/^v//; s/--g$//; s/-\([0-9]*\)-g\([0-9a-f]*\)$/+\1.g\2/; s/-/~/; s/-/./g'
