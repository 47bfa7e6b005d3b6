#!/bin/bash
# What an administrator does with kzr's package, on this system, and what must
# come of it: run by systemd in a virtual machine of its own. /vm/old.deb and
# /vm/new.deb are the package in two versions, old.rpm and new.rpm the same for
# rpm; /vm/zoo makes processes. The last line is the verdict.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
export DEBIAN_FRONTEND=noninteractive SYSTEMD_PAGER='' SYSTEMD_COLORS=0
exec 2>&1

failed=0

# want WHAT COMMAND...: the command succeeds.
want() {
	local what=$1
	shift
	if "$@"; then
		echo "ok $what"
	else
		echo "FAILED $what: $*"
		failed=1
	fi
}

# within SECONDS COMMAND...: it succeeds before long.
within() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "$SECONDS" -lt "$deadline" ] || return 1
		sleep 0.2
	done
}

not() { ! "$@"; }
quiet() { "$@" >/tmp/said 2>&1 || { cat /tmp/said && false; }; }
show() { systemctl show --value -p "$1" kzr.service; }
main_pid() { show MainPID; }
is() { [ "$(show "$1")" = "$2" ]; }
status_says() { show StatusText | grep -q -- "$1"; }
logged() { journalctl -q -u kzr.service -o cat --since "@$mark" | grep -q -- "$1"; }
tell() { echo "Linux $(uname -r), $(systemctl --version | head -n 1)"; }

# Entries of the journal and what systemd shows, from here on.
mark_journal() { mark=$(date +%s); }

# transient UNIT SCRIPT...: a unit whose main process runs the zoo's script, and
# which ends with it.
transient() {
	local unit=$1
	shift
	systemd-run -q --unit="$unit" -p TasksMax="${tasks:-infinity}" /vm/zoo "$@" serve
}
running() { systemctl -q is-active "$1"; }
# leaker UNIT: the pid of the process that does what the script says.
leaker() {
	local keeper
	keeper=$(systemctl show --value -p MainPID "$1")
	ps -o pid= --ppid "$keeper" | head -n 1 | tr -d ' '
}

configure() {
	cat >/etc/kzr/kzr.yaml <<-END
		scope: ${scope:-all}
		threshold: 20
		grace: 1s
		nudge: 200ms
		termTimeout: 1s
		limits: {killsPerMinute: 100}
		rules:
		$1
	END
}

install_it() {
	want "dpkg -i" quiet dpkg -i /vm/old.deb
	want "installing starts nothing" not running kzr
	want "its binary works" kzr version
	want "kzr check as root" kzr check
	want "and it knows which mode it has" checks_mode
}

checks_mode() { kzr check 2>&1 | tee /tmp/said | grep -q 'ebpf (chosen by auto)'; }

start_it() {
	mark_journal
	scope=containers configure '- {name: rest, match: {}}'
	transient early leak=30
	want "systemctl start" systemctl enable -q --now kzr
	want "it is ready when start returns" is ActiveState active
	want "it said so itself" logged started
	want "it sees through eBPF" logged 'source=bpf'
	want "systemctl status shows what it sees" within 20 status_says zombies
	show StatusText
	want "no root, and before others" grep -q '^ *[1-9][0-9]* *-10$' <(ps -o uid= -o ni= -p "$(main_pid)")
	want "exposure of 1.5 at most" exposed
	want "it keeps no more rights than it needs" not logged 'more rights'
	want "so it can load nothing any more, from Linux 5.19 on" gave_up
	want "the host's own are out of scope" within 20 logged 'out_of_scope'
	want "and live" running early
}
gave_up() {
	local caps
	caps=$(sed -n 's/^CapEff:[[:space:]]*//p' "/proc/$(main_pid)/status")
	[ "$((0x$caps & 0xc000000000))" = 0 ] || [[ $(uname -r) = 5.10.* ]] # CAP_PERFMON, CAP_BPF
}
exposed() {
	local x
	systemd-analyze security kzr.service --no-pager 2>/dev/null | tail -n 1 >/tmp/said
	cat /tmp/said
	x=$(sed -n 's/.*exposure level.*: \([0-9.]*\) .*/\1/p' /tmp/said)
	[ -n "$x" ] && [ "${x/./}" -le 15 ]
}

# The leaker that a rule names is killed; a process beside it, and a leaker that
# no rule names, are not.
reload_it() {
	local pid
	mark_journal
	pid=$(main_pid)
	configure '- {name: broken, nonsense: 1}'
	systemctl reload kzr
	want "a broken file is told of" within 20 logged nonsense
	want "and changes nothing" running early
	configure '- {name: vm, match: {cgroup: "/system.slice/leaker*.service"}}
- {name: rest, match: {}, action: observe}'
	want "systemctl reload" systemctl reload kzr
	want "it says so" within 20 logged reloaded
	want "the same process" [ "$(main_pid)" = "$pid" ]
	want "it is ready again" within 10 is ActiveState active

	transient bystander leak=3
	transient other leak=40
	transient leaker leak=40 term=ignore
	want "the leaker is killed by rule" within 40 not running leaker
	want "the journal tells of it" within 10 logged 'event=terminated.*rule=vm'
	want "SIGTERM came first" logged 'event=signal.*signal=SIGTERM'
	want "each key is a field" grep -q '"KZR_PID":"[0-9]' <(journalctl -q -u kzr.service -o json KZR_EVENT=terminated KZR_RULE=vm)
	want "the bystander lives" running bystander
	want "the other leaker lives" running other
	want "its rule is given" within 20 logged 'event=spared.*rule=rest'
	want "the cgroup is the unit's" grep -q '"cgroup":"/system.slice/other.service"' <(kzr scan --json | tr -d ' \n')
	want "explain knows the unit" grep -q other.service <(kzr explain "$(leaker other)")
	systemctl stop other bystander early
}

# The unit's own limit: systemd's TasksMax is the cgroup's pids.max.
pids_limit() {
	mark_journal
	configure '- {name: vm, match: {cgroup: "/system.slice/limited.service"}, grace: 1h}
- {name: rest, match: {}, action: observe}'
	systemctl reload kzr
	within 20 logged reloaded
	tasks=100 transient limited storm=0,rate=200
	want "a unit at its TasksMax is freed long before its grace" within 60 not running limited
	want "by kzr" within 10 logged 'event=terminated.*rule=vm'
}

# drop_in LINE...: settings of this test's own in the unit, from its next start on.
drop_in() {
	mkdir -p /etc/systemd/system/kzr.service.d
	printf '%s\n' '[Service]' "$@" >/etc/systemd/system/kzr.service.d/vm.conf
	systemctl daemon-reload
}
# no_drop_in: none any more, from the next one on.
no_drop_in() { rm -r /etc/systemd/system/kzr.service.d; }

# Something listens where a container runtime would, for root's group only, and
# notes who comes; and a process leaks in what looks like a pod's container. (Each
# start of kzr takes its time here: this one is with two of the package's drop-ins.)
asks_runtime() {
	local pod=/sys/fs/cgroup/kubepods/pod11111111-2222-4333-8444-555555555555
	local container=$pod/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
	local socket=/run/containerd/containerd.sock
	mkdir -p "$container" "${socket%/*}"
	# shellcheck disable=SC2016 # for the other shell
	systemd-run -q --unit=runtime systemd-socket-activate --accept --listen="$socket" \
		/bin/sh -c 'echo somebody >>/tmp/asked'
	within 10 [ -S "$socket" ]
	chmod 660 "$socket"
	transient tenant "cgroup=$container" leak=30
	configure '- {name: rest, match: {}, action: observe}'
	echo 'metrics: "0.0.0.0:9911"' >>/etc/kzr/kzr.yaml
	install -D -m 644 -t /etc/systemd/system/kzr.service.d /usr/share/kzr/{cri,metrics}.conf
	systemctl daemon-reload
	systemctl restart kzr
	want "with cri.conf it asks the runtime" within 30 [ -s /tmp/asked ]
	want "the parent is known to be a container's" within 10 grep -q '"podUID":"11111111-2222-4333-8444-555555555555"' <(kzr scan --json | tr -d ' \n')
	systemctl stop tenant runtime
	within 10 rmdir "$container" "$pod" /sys/fs/cgroup/kubepods
	rm -rf "${socket%/*}"
}

serves_metrics() {
	# Who asks for this address does so from it.
	# shellcheck disable=SC2016 # Perl's
	perl -MSocket -e 'socket(my $s, AF_INET, SOCK_DGRAM, 0); ioctl($s, 0x8916, # SIOCSIFADDR
		pack("a16 S x2 a4 x24", "lo:1", AF_INET, inet_aton("192.0.2.1"))) or die $!'
	want "with metrics.conf it serves metrics" scraped 127.0.0.1
	want "to this machine only" not scraped 192.0.2.1
	sed -i '/^IPAddressAllow=/s,$, 192.0.2.0/24,' /etc/systemd/system/kzr.service.d/metrics.conf
	drop_in WatchdogSec=5min # the next step stops it for a while
	systemctl restart kzr
	want "unless a network is added" scraped 192.0.2.1
}
# shellcheck disable=SC2016 # for the other shell
scraped() {
	timeout 2 bash -c 'exec 3<>"/dev/tcp/$0/9911" && printf "GET /metrics HTTP/1.0\r\n\r\n" >&3 && grep -q ^kzr_zombies <&3' "$1"
}

# Nothing on the machine can fork; this script can only use what the shell has
# built in.
table_full() {
	local line n=0 max=1500 pid old deadline
	configure '- {name: vm, match: {cgroup: "/system.slice/flood.service"}, grace: 1h}
- {name: rest, match: {}, action: observe}'
	mark_journal
	systemctl reload kzr
	within 20 logged reloaded
	pid=$(main_pid)
	mkfifo /tmp/go
	: >/tmp/forked
	sh -c 'read -r go; /bin/true; echo "after $?"' <>/tmp/go >/tmp/forked 2>&1 &
	read -r old </proc/sys/kernel/pid_max
	echo "$max" >/proc/sys/kernel/pid_max
	transient flood storm=0
	kill -STOP "$pid"
	deadline=$((SECONDS + 90))
	# Pids below 300 are used once only.
	while [ "$n" -lt $((max - 310)) ] && [ "$SECONDS" -lt "$deadline" ]; do
		read -r _ _ _ line _ </proc/loadavg
		n=${line#*/}
		read -r -t 0.2 _ <>/tmp/none
	done
	read -r -t 1 _ <>/tmp/none
	echo "$n tasks with pid_max $max after $SECONDS s"
	echo go >/tmp/go
	until read -r line </tmp/forked || [ "$SECONDS" -ge "$deadline" ]; do
		read -r -t 0.2 _ <>/tmp/none
	done
	kill -CONT "$pid"
	echo "a shell says: $line"
	case $line in
	*[Ff]ork*) echo "ok nothing can fork" ;;
	*) echo "FAILED nothing can fork: $line" && failed=1 ;;
	esac
	deadline=$((SECONDS + 60))
	while [ "$n" -gt 500 ] && [ "$SECONDS" -lt "$deadline" ]; do
		read -r _ _ _ line _ </proc/loadavg
		n=${line#*/}
		read -r -t 0.2 _ <>/tmp/none
	done
	want "kzr frees the table" [ "$n" -le 500 ]
	echo "$old" >/proc/sys/kernel/pid_max
	want "the leaker is gone" within 20 not running flood
	want "by kzr" within 10 logged 'event=terminated.*rule=vm'
	want "the same daemon all along" [ "$(main_pid)" = "$pid" ]
	no_drop_in
}

# systemd kills what no longer feeds its watchdog, and starts it again.
watchdog() {
	local pid
	drop_in WatchdogSec=5s RestartSec=100ms
	systemctl restart kzr
	pid=$(main_pid)
	sleep 6
	want "a watchdog that is fed does not bite" [ "$(main_pid)" = "$pid" ]
	kill -STOP "$pid"
	want "a stopped daemon is killed" within 60 not kill -0 "$pid"
	want "and started again" within 60 is ActiveState active
	want "once" is NRestarts 1
	no_drop_in
}

# bpf(2) is denied: the same unit carries on with /proc, and says so.
without_bpf() {
	drop_in SystemCallFilter=~bpf
	mark_journal
	configure '- {name: vm, match: {cgroup: "/system.slice/leaker*.service"}}
- {name: rest, match: {}, action: observe}'
	systemctl restart kzr
	want "without bpf it runs on /proc" logged 'source=proc'
	show StatusText
	want "and says so in systemctl status" within 20 status_says /proc
	transient leaker2 leak=40 term=ignore
	want "and does its work" within 60 not running leaker2
	no_drop_in
}

# The kernel's types cannot be read.
without_btf() {
	drop_in InaccessiblePaths=/sys/kernel/btf
	mark_journal
	systemctl restart kzr
	want "without BTF it runs on /proc" logged 'source=proc'
	want "and says so in systemctl status" within 20 status_says '/proc.*BTF'
	show StatusText
	no_drop_in
}

stop_it() {
	mark_journal
	want "systemctl stop" quiet systemctl stop kzr
	want "it ends well" is Result success
	want "it says so" within 10 logged stopping
	want "nothing of it is left" [ ! -e /run/kzr ]
}

upgrade_it() {
	local pid
	want "dpkg -i over one that is stopped" quiet dpkg -i --force-confold /vm/new.deb
	want "does not start it" not running kzr
	want "nor disable it" systemctl -q is-enabled kzr
	systemctl start kzr
	pid=$(main_pid)
	echo 'nonsense: 1' >>/etc/kzr/kzr.yaml
	want "dpkg -i with a broken configuration" quiet dpkg -i --force-confold /vm/old.deb
	want "tells of it" grep -q 'kzr.yaml:[0-9]*: nonsense' /tmp/said
	want "and lets the old process be" [ "$(main_pid)" = "$pid" ]
	sed -i /^nonsense/d /etc/kzr/kzr.yaml
	# One of `make install`, which no longer understands the configuration.
	printf '#!/bin/sh\nexit 2\n' >/usr/local/bin/kzr
	chmod +x /usr/local/bin/kzr
	want "dpkg -i over a running one" quiet dpkg -i --force-confold /vm/new.deb
	rm /usr/local/bin/kzr
	want "it runs" within 20 is ActiveState active
	want "as the new version" grep -q 0.0.2 <(kzr version)
	want "which has taken over" [ "$(main_pid)" != "$pid" ]
	want "with the administrator's configuration" grep -q 'name: vm' /etc/kzr/kzr.yaml
}

remove_it() {
	local pid others=/usr/lib/systemd/system/kzr.service.d/others.conf
	pid=$(main_pid)
	mkdir -p "${others%/*}"
	: >"$others"
	want "dpkg -r" quiet dpkg -r kzr
	want "others' drop-ins stay" [ -e "$others" ]
	rm -r "${others%/*}"
	want "it does not run" [ ! -e "/proc/$pid" ]
	want "it will not be started" [ ! -e /etc/systemd/system/multi-user.target.wants/kzr.service ]
	want "systemd does not know it" is LoadState not-found
	want "the configuration stays" [ -e /etc/kzr/kzr.yaml ]
	ln -s /dev/null /etc/systemd/system/kzr.service # as systemctl mask does
	want "dpkg -P" quiet dpkg -P kzr
	find / -xdev -name '*kzr*' -not -path '/vm/*' -not -path '/proc/*' -not -path '/sys/*' >/tmp/left
	want "nothing is left" [ ! -s /tmp/left ]
	cat /tmp/left
}

# The scripts of the .rpm are told in other words what happens. (This is no
# system of rpm's: it knows of no other package.)
with_rpm() {
	local pid
	want "rpm -i" quiet rpm --nodeps -i /vm/old.rpm
	want "installing starts nothing" not running kzr
	want "rpm -U over one that is stopped" quiet rpm --nodeps -U /vm/new.rpm
	want "does not start it" not running kzr
	want "systemctl start" systemctl start kzr
	pid=$(main_pid)
	echo "threshold: 60" >/etc/kzr/kzr.yaml
	want "rpm -U over a running one" quiet rpm --nodeps -U --oldpackage /vm/old.rpm
	want "it runs" within 20 is ActiveState active
	want "as the other version" grep -q 0.0.1 <(kzr version)
	want "which has taken over" [ "$(main_pid)" != "$pid" ]
	want "with the administrator's configuration" grep -q 60 /etc/kzr/kzr.yaml
	want "and is not enabled" not systemctl -q is-enabled kzr
	systemctl enable -q kzr
	pid=$(main_pid)
	want "rpm -e" quiet rpm -e kzr
	want "it does not run" [ ! -e "/proc/$pid" ]
	want "systemd does not know it" is LoadState not-found
	rm /etc/kzr/kzr.yaml.rpmsave
	rmdir /etc/kzr
	find / -xdev -name '*kzr*' -not -path '/vm/*' -not -path '/proc/*' -not -path '/sys/*' >/tmp/left
	want "nothing but the changed configuration is left" [ ! -s /tmp/left ]
	cat /tmp/left
}

tell
mkfifo /tmp/none
mark_journal
start=$mark
steps=(install_it start_it reload_it pids_limit asks_runtime serves_metrics table_full watchdog without_bpf without_btf stop_it upgrade_it remove_it)
! grep -q trixie /etc/os-release || steps+=(with_rpm) # the only one that has rpm: debian.sh
for step in "${steps[@]}"; do
	echo "== $step ($SECONDS s)"
	"$step"
done
if [ "$failed" = 0 ]; then
	echo "verdict: passed"
else
	# Without the stacks that the watchdog's SIGABRT brought forth.
	journalctl -q --no-pager -u kzr.service --since "@$start" | grep -E 'systemd|event=|level=' | tail -n 200
	echo "verdict: FAILED"
fi
sleep 1 # for the serial port
echo b >/proc/sysrq-trigger
