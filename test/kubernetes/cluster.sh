#!/bin/bash
# A Kubernetes of one node on this machine, made from unmodified Go modules: no
# download of a release, no image registry, nothing left behind. For tests.
#
#	cluster.sh binary           build it if need be, and print where it is
#	cluster.sh helm             the same for helm
#	cluster.sh cached           print where it is, or would be
#	cluster.sh possible         whether a node can run here; if not, print why
#	cluster.sh start DIR        API server, controllers, scheduler, kubelet, containerd
#	cluster.sh start-api DIR PORT   etcd and API server only, on 127.0.0.1:PORT
#	cluster.sh kubectl DIR ARGUMENT...
#	cluster.sh ctr DIR ARGUMENT...
#	cluster.sh stop DIR
#
# DIR is an empty directory with a short path, as sockets are in it. The node has
# mount and network namespaces of its own: neither the machine's sysctls, mounts nor
# network change. Not for a machine that is a Kubernetes node.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kubernetes=v1.37.2
helm=v4.3.1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kzr

# In the cache by what it is made from: it takes ten minutes of two cores to build.
cached() { echo "$cache/kubernetes-$(cat "$here"/go.mod "$here"/go.sum "$here"/kube/main.go | sha256sum | cut -c 1-16)"; }

binary() {
	local file
	file=$(cached)
	if [ ! -x "$file" ]; then
		mkdir -p "${file%/*}"
		local flags="-s -w" p
		for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
			flags+=" -X $p.gitVersion=$kubernetes -X $p.gitMajor=1 -X $p.gitMinor=${kubernetes:3:2} -X $p.gitTreeState=clean -X $p.buildDate=2026-10-27T12:01:04Z"
		done
		(cd "$here" && CGO_ENABLED=0 GOFLAGS=-mod=mod nice -n "${KZR_NICE:-19}" go build -trimpath -buildvcs=false -ldflags "$flags" -o "$file.new" ./kube) >&2
		mv "$file.new" "$file"
	fi
	echo "$file"
}

helm() {
	local file=$cache/helm-$helm
	if [ ! -x "$file" ]; then
		mkdir -p "$cache/bin"
		(cd / && CGO_ENABLED=0 GOBIN=$cache/bin nice -n "${KZR_NICE:-19}" go install -trimpath "helm.sh/helm/v4/cmd/helm@$helm") >&2
		mv "$cache/bin/helm" "$file"
	fi
	echo "$file"
}

links() {
	local file name
	file=$(binary)
	for name in kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl etcd; do ln -sf "$file" "$1/$name"; done
}

# Keys that this cluster alone trusts.
pki() {
	local name=$2 subject=$3 hosts=$4
	cd "$1"
	if [ ! -e ca.key ]; then
		openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca 2>/dev/null
		openssl genrsa -out sa.key 2048 2>/dev/null
	fi
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$name.key" -out "$name.csr" -subj "$subject" 2>/dev/null
	openssl x509 -req -in "$name.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out "$name.crt" \
		-extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$hosts") 2>/dev/null
	cat >"$name.conf" <<-Y
		apiVersion: v1
		kind: Config
		clusters: [{name: k, cluster: {server: "$5", certificate-authority: $PWD/ca.crt}}]
		users: [{name: u, user: {client-certificate: $PWD/$name.crt, client-key: $PWD/$name.key}}]
		contexts: [{name: c, context: {cluster: k, user: u}}]
		current-context: c
	Y
	cd - >/dev/null
}

all_pki() {
	local dir=$1/pki url=$2
	mkdir "$dir"
	pki "$dir" apiserver /CN=kube-apiserver IP:127.0.0.1,IP:10.96.0.1,DNS:kubernetes.default.svc "$url"
	pki "$dir" admin /O=system:masters/CN=admin DNS:admin "$url"
	pki "$dir" kubelet /O=system:nodes/CN=system:node:node1 DNS:node1 "$url"
	pki "$dir" cm /CN=system:kube-controller-manager DNS:cm "$url"
	pki "$dir" scheduler /CN=system:kube-scheduler DNS:scheduler "$url"
}

# run DIR NAME COMMAND...: in the background, with its log and pid beside it.
run() {
	local dir=$1 name=$2
	shift 2
	"$@" >"$dir/$name.log" 2>&1 </dev/null &
	echo $! >"$dir/$name.pid"
}

# wait_for SECONDS COMMAND...
wait_for() {
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || { echo >&2 "not in time: $*"; return 1; }
		sleep .2
	done
}

# api DIR ADDRESS PORT ETCD-PORT
api() {
	run "$1" etcd "$1/etcd" "$1/etcd.data" "$4" $(($4 + 1))
	wait_for 30 grep -q ready "$1/etcd.log"
	run "$1" apiserver "$1/kube-apiserver" --etcd-servers="http://127.0.0.1:$4" --bind-address="$2" --advertise-address="$2" --secure-port="$3" \
		--tls-cert-file="$1/pki/apiserver.crt" --tls-private-key-file="$1/pki/apiserver.key" --client-ca-file="$1/pki/ca.crt" \
		--service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$1/pki/sa.key" --service-account-signing-key-file="$1/pki/sa.key" \
		--service-cluster-ip-range=10.96.0.0/24 --authorization-mode=Node,RBAC --endpoint-reconciler-type=none --allow-privileged=true \
		--enable-admission-plugins=NodeRestriction --kubelet-client-certificate="$1/pki/admin.crt" --kubelet-client-key="$1/pki/admin.key" \
		--kubelet-preferred-address-types=InternalIP
	wait_for 120 "$1/kubectl" --kubeconfig "$1/pki/admin.conf" get --raw /readyz
}

# The node has a cgroup of its own, below which the kubelet makes those of its pods. In
# cgroup v2 it asks that this one has every controller that it knows and the machine
# has; that they stay enabled afterwards is what every container runtime leaves behind.
cgroups() {
	local c f
	if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
		for c in cpu cpuset memory pids; do
			grep -qw "$c" /sys/fs/cgroup/cgroup.controllers || { echo "cgroup v2 has no controller $c here"; return 1; }
		done
		for c in cpu cpuset memory pids hugetlb; do
			grep -qw "$c" /sys/fs/cgroup/cgroup.controllers || continue
			(echo "+$c" >/sys/fs/cgroup/cgroup.subtree_control) 2>/dev/null ||
				{ echo "cgroup v2: the controller $c cannot be enabled below /sys/fs/cgroup; in a container, it holds the container's own processes"; return 1; }
		done
		mkdir -p /sys/fs/cgroup/kzr-k8s 2>/dev/null || { echo "/sys/fs/cgroup is read-only"; return 1; }
		return
	fi
	for c in cpu cpuset memory pids; do
		[ -d "/sys/fs/cgroup/$c" ] || { echo "cgroup v1 has no controller $c here"; return 1; }
	done
	for c in /sys/fs/cgroup/*/; do
		mkdir -p "$c/kzr-k8s" 2>/dev/null || { echo "$c is read-only"; return 1; }
	done
	for f in cpus mems; do cat "/sys/fs/cgroup/cpuset/cpuset.$f" >"/sys/fs/cgroup/cpuset/kzr-k8s/cpuset.$f"; done
}

no_cgroups() { find /sys/fs/cgroup/kzr-k8s /sys/fs/cgroup/*/kzr-k8s -depth -type d -exec rmdir {} + 2>/dev/null || true; }

possible() {
	[ "$(id -u)" = 0 ] || { echo "this needs root"; return 1; }
	[ ! -e /var/lib/kubelet/pods ] || { echo "this machine is a Kubernetes node"; return 1; }
	unshare -m -n true 2>/dev/null || { echo "no mount and network namespaces can be made here"; return 1; }
	cgroups || return 1
	rmdir /sys/fs/cgroup/kzr-k8s /sys/fs/cgroup/*/kzr-k8s 2>/dev/null || true # those of another cluster are not empty
}

# node DIR: inside its namespaces, for as long as they live.
node() {
	local dir=$1 f
	mount --make-rshared /
	for f in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
		mkdir -p "$dir/sys/${f%/*}"
		cat "/proc/sys/$f" >"$dir/sys/$f"
		mount --bind "$dir/sys/$f" "/proc/sys/$f" # the kubelet writes here
	done
	mkdir -p /var/lib/kubelet "$dir"/{kubelet.d,cni}
	ip link set lo up
	# The address of the service "kubernetes" is this machine's: nothing has to translate it.
	ip addr add 10.96.0.1/32 dev lo
	ip link add d0 type bridge
	ip addr add 10.99.0.1/24 dev d0
	ip link set d0 up
	ip route add default dev d0
	cgroups
	api "$dir" 10.96.0.1 443 22379
	run "$dir" containerd containerd --config "$dir/containerd.toml"
	wait_for 30 ctr -a "$dir/containerd.sock" version
	run "$dir" cm "$dir/kube-controller-manager" --kubeconfig "$dir/pki/cm.conf" --use-service-account-credentials --service-account-private-key-file="$dir/pki/sa.key" \
		--root-ca-file="$dir/pki/ca.crt" --leader-elect=false --bind-address=127.0.0.1
	run "$dir" scheduler "$dir/kube-scheduler" --kubeconfig "$dir/pki/scheduler.conf" --leader-elect=false --bind-address=127.0.0.1
	run "$dir" kubelet "$dir/kubelet" --config "$dir/kubelet.yaml" --kubeconfig "$dir/pki/kubelet.conf" --hostname-override=node1 --node-ip=10.99.0.1 \
		--root-dir="$dir/kubelet.d" --cert-dir="$dir/kubelet.d/pki" --node-labels=topology.kubernetes.io/zone=here
	exec sleep infinity
}

write_config() {
	local dir=$1
	cat >"$dir/containerd.toml" <<-T
		version = 2
		root = "$dir/ctd/root"
		state = "$dir/ctd/state"
		[grpc]
		address = "$dir/containerd.sock"
		[plugins."io.containerd.internal.v1.opt"]
		path = "$dir/ctd/opt"
		[plugins."io.containerd.grpc.v1.cri"]
		restrict_oom_score_adj = true
		sandbox_image = "localhost/busybox:1"
		[plugins."io.containerd.grpc.v1.cri".cni]
		conf_dir = "$dir/cni"
		bin_dir = "/usr/lib/cni"
		[plugins."io.containerd.grpc.v1.cri".containerd]
		snapshotter = "overlayfs"
		[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
		runtime_type = "io.containerd.runc.v2"
		[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
		Root = "$dir/ctd/runc"
		SystemdCgroup = false
	T
	mkdir -p "$dir/cni"
	cat >"$dir/cni/10-bridge.conflist" <<-J
		{"cniVersion":"0.4.0","name":"kzr","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,
		"ipam":{"type":"host-local","subnet":"10.98.0.0/24","routes":[{"dst":"0.0.0.0/0"}],"dataDir":"$dir/cni-state"}}]}
	J
	cat >"$dir/kubelet.yaml" <<-Y
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $dir/pki/ca.crt}}
		authorization: {mode: Webhook}
		cgroupDriver: cgroupfs
		cgroupRoot: /kzr-k8s
		failSwapOn: false
		failCgroupV1: false
		cgroupsPerQOS: true
		enforceNodeAllocatable: []
		containerRuntimeEndpoint: unix://$dir/containerd.sock
		localStorageCapacityIsolation: false
		evictionHard: {imagefs.available: "1%", memory.available: "50Mi", nodefs.available: "1%", nodefs.inodesFree: "1%"}
		imageMinimumGCAge: 24h
		imageGCHighThresholdPercent: 100
		makeIPTablesUtilChains: false
		resolvConf: /etc/resolv.conf
		port: 20250
		healthzPort: 20248
		podLogsDir: $dir/podlogs
		syncFrequency: 5s
		configMapAndSecretChangeDetectionStrategy: Watch
	Y
}

inside() {
	local dir=$1
	shift
	nsenter -t "$(cat "$dir/hold.pid")" -n -m "$@"
}

kubectl() {
	local dir=$1
	shift
	if [ -e "$dir/hold.pid" ]; then
		inside "$dir" "$dir/kubectl" --kubeconfig "$dir/pki/admin.conf" "$@"
	else
		"$dir/kubectl" --kubeconfig "$dir/pki/admin.conf" "$@"
	fi
}

start() {
	local dir=$1 why
	why=$(possible) || { echo >&2 "no Kubernetes node can run here: $why"; return 1; }
	links "$dir"
	write_config "$dir"
	all_pki "$dir" https://10.96.0.1:443
	setsid unshare -m -n "$here/cluster.sh" node "$dir" >"$dir/node.log" 2>&1 </dev/null &
	echo $! >"$dir/hold.pid"
	wait_for 150 kubectl "$dir" get --raw /readyz
	# An image only has to be there: whoever uses it comes after.
	wait_for 30 inside "$dir" ctr -a "$dir/containerd.sock" version
	wait_for 60 kubectl "$dir" get node node1
}

start_api() {
	links "$1"
	all_pki "$1" "https://127.0.0.1:$2"
	api "$1" 127.0.0.1 "$2" $(($2 + 1))
}

end() {
	local pid
	[ -e "$1" ] || return 0
	pid=$(cat "$1")
	kill "$pid" 2>/dev/null || return 0
	for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || return 0; sleep .1; done
	kill -KILL "$pid" 2>/dev/null || true
}

stop() {
	local dir=$1 p t
	for p in kubelet scheduler cm; do end "$dir/$p.pid"; done
	if [ -e "$dir/hold.pid" ] && kill -0 "$(cat "$dir/hold.pid")" 2>/dev/null; then
		for _ in 1 2 3; do
			for t in $(inside "$dir" ctr -a "$dir/containerd.sock" -n k8s.io tasks ls -q 2>/dev/null); do
				inside "$dir" ctr -a "$dir/containerd.sock" -n k8s.io tasks kill -s KILL "$t" 2>/dev/null || true
			done
			sleep .5
		done
		for t in $(inside "$dir" ctr -a "$dir/containerd.sock" -n k8s.io containers ls -q 2>/dev/null); do
			inside "$dir" ctr -a "$dir/containerd.sock" -n k8s.io tasks delete -f "$t" 2>/dev/null >&2 || true
		done
	fi
	for p in containerd apiserver etcd; do end "$dir/$p.pid"; done
	if [ ! -e "$dir/hold.pid" ]; then # no node
		rm -rf "${dir:?}"
		return
	fi
	end "$dir/hold.pid"
	no_cgroups
	rm -rf /usr/libexec/kubernetes /var/lib/kubelet
	rmdir /var/lib/cni/results /var/lib/cni /var/log/pods /var/log/containers 2>/dev/null || true
	rm -rf "${dir:?}" || true
}

command=$1
shift
case $command in
binary) binary ;;
helm) helm ;;
cached) cached ;;
possible) possible ;;
start) start "$@" ;;
start-api) start_api "$@" ;;
node) node "$@" ;;
kubectl) kubectl "$@" ;;
ctr) dir=$1; shift; inside "$dir" ctr -a "$dir/containerd.sock" -n k8s.io "$@" ;;
inside) inside "$@" ;;
stop) stop "$@" ;;
*) echo >&2 "$0: $command?"; exit 2 ;;
esac
