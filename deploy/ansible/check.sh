#!/bin/bash
# The role, checked and run on this machine: dry run beside the cron script, then
# enforcement without it, twice, as the second time must change nothing. Puts a kzr in
# /usr/local/bin if there is none, and takes away all that it made. Needs root.
#
#	check.sh KZR
set -euo pipefail
kzr=$(realpath "$1")
cd "$(dirname "$0")"
for f in /usr/local/bin/kill_zombie_parents.sh /etc/cron.d/kill_zombie_parents /etc/kzr/kzr.yaml.d/50-ansible.yaml /usr/local/bin/kzr; do
	[ ! -e "$f" ] || { echo >&2 "$f is there: not a machine for this test"; exit 1; }
done
trap 'rm -rf /usr/local/bin/kill_zombie_parents.sh /etc/cron.d/kill_zombie_parents /etc/kzr/kzr.yaml.d/50-ansible.yaml /usr/local/bin/kzr "$log"; rmdir -p --ignore-fail-on-non-empty /etc/kzr/kzr.yaml.d 2>/dev/null || true' EXIT
log=$(mktemp)
cp "$kzr" /usr/local/bin/kzr
mkdir -p /etc/cron.d
printf '#!/bin/sh\n' >/usr/local/bin/kill_zombie_parents.sh
printf '#*/5 * * * * root /usr/local/bin/kill_zombie_parents.sh\n' >/etc/cron.d/kill_zombie_parents
play() { ANSIBLE_LOCALHOST_WARNING=0 ANSIBLE_ROLES_PATH=roles ansible-playbook -i localhost, -c local -e kzr_service=false "$@" site.yml | tee "$log"; }
changed() { sed -n 's/.*changed=\([0-9]*\).*/\1/p' "$log"; }

ansible-playbook -i localhost, --syntax-check site.yml
play
[ -e /etc/cron.d/kill_zombie_parents ]
grep -q 'dryRun: true' /etc/kzr/kzr.yaml.d/50-ansible.yaml
play -e kzr_dry_run=false -e '{"kzr_config": {"threshold": 100, "rules": [{"name": "ci", "match": {"namespace": "ci-*"}, "action": "observe"}]}}'
[ ! -e /etc/cron.d/kill_zombie_parents ] && [ ! -e /usr/local/bin/kill_zombie_parents.sh ]
kzr check --config /etc/kzr/kzr.yaml.d/50-ansible.yaml >/dev/null || [ $? -ne 2 ]
play -e kzr_dry_run=false -e '{"kzr_config": {"threshold": 100, "rules": [{"name": "ci", "match": {"namespace": "ci-*"}, "action": "observe"}]}}'
[ "$(changed)" = 0 ] || { echo "the second run changed something"; exit 1; }
if play -e kzr_dry_run=false -e '{"kzr_config": {"treshold": 100}}'; then echo "a bad setting was taken"; exit 1; fi
grep -q 'threshold: 100' /etc/kzr/kzr.yaml.d/50-ansible.yaml
echo "ok: the role installs, replaces the script, changes nothing twice and refuses a bad setting"
