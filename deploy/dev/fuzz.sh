#!/bin/bash
# Run each Fuzz function for FUZZTIME. The tests run what is in testdata/fuzz, this
# looks for more; what fails is put there, to be committed with what mends it.
set -euo pipefail
cd "$(dirname "$0")/../.."

all=$(go test -list '^Fuzz' ./...) || { echo "$all" && exit 1; }
failed=
while read -r package f; do
	echo "$package $f"
	# Before 1.27 Go can take the end of the time for a failure (go.dev/issue/75804):
	# what counts is what is there then.
	go test -run '^$' -fuzz "^$f\$" -fuzztime "$FUZZTIME" -fuzzminimizetime 100x "$package" </dev/null ||
		go test -run "^$f\$" "$package" || failed="$failed $f"
done < <(awk '/^Fuzz/ { f[n++] = $1 } /^ok/ { for (i = 0; i < n; i++) print $2, f[i]; n = 0 }' <<<"$all")
[ -z "$failed" ] || { echo "failed:$failed" && exit 1; }
