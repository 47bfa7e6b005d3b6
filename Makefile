# What a developer does. What each target needs it sets up: on a fresh Debian or
# Ubuntu with make, git and root, Go and compilers come from apt-get, a newer Go from
# the module proxy, and Go tools into ./.cache. `make help` lists the targets; what is
# more than a line is in deploy/dev.

GOLANGCI_LINT_VERSION = v2.15.0
NFPM_VERSION = v2.45.2
CYCLONEDX_VERSION = v1.9.0

# The Go of this machine, or the one that deploy/dev/go.sh fetched: no other one is
# downloaded behind the user's back. (make 4.3 looks for commands in its own PATH,
# unless a shell does.)
export GOTOOLCHAIN = local
export PATH := $(CURDIR)/.cache/go/bin:$(PATH):/usr/local/go/bin
SHELL := /bin/bash

# The clone may be somebody else's, whom git would not trust, and Go would ask git.
# So Go is told, and git is told where to look: here, and not above.
git = git --git-dir=.git
VERSION ?= $(shell deploy/dev/version.sh)
COMMIT := $(shell $(git) rev-parse HEAD 2>/dev/null)$(if $(shell $(git) --no-optional-locks status --porcelain 2>/dev/null), (modified))
ldflags = -X main.version=$(VERSION) -X 'main.commit=$(COMMIT)'
# Packages and manual pages bear the time of the commit. In an archive without
# git, the files have it.
export SOURCE_DATE_EPOCH := $(or $(SOURCE_DATE_EPOCH),$(shell $(git) log -1 --format=%ct 2>/dev/null || stat -c %Y Makefile))

# What `make package` makes.
ARCHS ?= amd64 arm64
FORMATS ?= deb rpm
# Where `make install` goes.
DESTDIR ?=
PREFIX ?= /usr/local

ARGS ?=
BENCH ?= .
SOAKFLAGS ?=
export TESTFLAGS ?=
export DURATION ?= 2m
export FUZZTIME ?= 10s

lint := .cache/bin/golangci-lint-$(GOLANGCI_LINT_VERSION)
nfpm := .cache/bin/nfpm-$(NFPM_VERSION)
cyclonedx := .cache/bin/cyclonedx-gomod-$(CYCLONEDX_VERSION)
need = @deploy/dev/need.sh
# The real programs that the tests reap inside.
programs = bash dash busybox python3 node java javac redis-server nginx haproxy

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: go
go:
	@deploy/dev/go.sh
build test test-hostile test-runtimes test-arm64 soak fuzz reliability vmtest generate lint bench man package release tools $(lint) $(nfpm) $(cyclonedx): | go

.PHONY: build
build: ## bin/kzr, static
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$(ldflags)" -o bin/kzr ./cmd/kzr

.PHONY: run
run: build ## build kzr and run it on this node; flags in ARGS="--dry-run …"
	$(need) root
	bin/kzr run $(ARGS)

.PHONY: test
test: ## the tests, with the race detector, on this kernel; storms, faults and soak are test-hostile
	$(need) root cc ps tmux $(programs)
	deploy/dev/test.sh

.PHONY: test-hostile
test-hostile: ## the rest: storms, faults and DURATION of soak, on a machine with nothing else to do
	$(need) root cc ps
	deploy/dev/test.sh hostile

# They get state, sockets and cgroups of their own, beside those of the machine.
.PHONY: test-runtimes
test-runtimes: ## the tests with containerd, docker and podman
	$(need) root cc containerd runc dockerd podman
	KZR_REQUIRE_RUNTIMES=1 CGO_ENABLED=1 go test -race -count=1 $(TESTFLAGS) ./internal/runtimes

.PHONY: test-arm64
test-arm64: ## the tests that do not need an arm64 kernel, on arm64
	$(need) root cc qemu-aarch64-static
	deploy/dev/test-arm64.sh

.PHONY: test-bare
test-bare: ## make run and make test in a Debian made from nothing; ARGS="bookworm make test"
	$(need) root mmdebstrap
	deploy/dev/bare.sh $(ARGS)

# A failure names its seed and case; KZR_SOAK_SEED and KZR_SOAK_CASE do it again.
.PHONY: soak
soak: ## random good and bad processes, and an oracle: DURATION=1h, 2m if not said
	$(need) root cc
	KZR_SOAK=$(DURATION) go test -count=1 -timeout 0 -run '^TestSoak$$' $(SOAKFLAGS) ./internal/e2e

.PHONY: fuzz
fuzz: ## every Fuzz function there is, one after the other, for FUZZTIME=10s each
	$(need) root
	deploy/dev/fuzz.sh

.PHONY: reliability
reliability: ## run all that is to be survived, at length, and write docs/RELIABILITY.md
	$(need) root cc ps
	deploy/dev/reliability.sh

.PHONY: vmtest
vmtest: ## kernel tests and the package on Debian 11, 12 and 13 (from its archive), in QEMU; ARGS="bookworm tests"; arm64 with ARGS=arm64
	$(need) root cc qemu-system-x86_64 mmdebstrap cpio debian-archive-keyring
	$(if $(filter arm64,$(ARGS)),$(need) qemu-system-aarch64 aarch64-linux-gnu-gcc)
	deploy/vm/vmtest.sh $(ARGS)

.PHONY: demo
demo: build ## a leaker in a pid namespace, and kzr beside it: 15 seconds
	$(need) root cc ps
	@deploy/demo.sh

.PHONY: screenshot
screenshot: build ## docs/top.svg: kzr top over tenants that leak, drawn from a real terminal
	$(need) root cc tmux
	go run ./internal/screenshot -kzr bin/kzr -out docs

# What the compiler was goes into bpf/CLANG: only the same one makes the same bytes.
.PHONY: generate
generate: ## compile bpf/*.bpf.c (clang) and write the Go beside it
	$(need) clang llvm-strip
	go generate ./...
	@clang --version | head -n 1 >bpf/CLANG

.PHONY: lint
lint: $(lint) ## gofmt, golangci-lint, shellcheck
	$(need) shellcheck
	@unformatted=$$(gofmt -l bpf cmd internal); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }
	$(lint) run
	shellcheck .ci/run deploy/*.sh deploy/*/*.sh deploy/kubernetes/image/*.sh test/kubernetes/*.sh deploy/package/{postinst,prerm,postrm} bpf/headers/update.sh

.PHONY: bench
bench: ## kzr beside what else there is: docs/BENCHMARKS.md; one: BENCH=Name; a try: ARGS=--quick
	$(need) root cc ps forkstat exitsnoop bpftrace
	deploy/dev/bench.sh $(ARGS) $(BENCH)

.PHONY: man
man: ## dist/man, from the help and from deploy/kzr.yaml
	@mkdir -p dist/man
	CGO_ENABLED=0 go run -tags man -ldflags "$(ldflags)" ./cmd/kzr man deploy/kzr.yaml dist/man

.PHONY: install uninstall
install: build man ## into PREFIX=/usr/local, and the file system DESTDIR
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' deploy/install.sh install

uninstall: ## all that but the configuration
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' deploy/install.sh uninstall

.PHONY: package
package: $(nfpm) man ## dist/*.deb and *.rpm; one: ARCHS=arm64 FORMATS=deb VERSION=1.2.3
	NFPM=$(nfpm) VERSION='$(VERSION)' LDFLAGS="$(ldflags)" deploy/package/build.sh '$(ARCHS)' '$(FORMATS)'

.PHONY: package-check
package-check: package ## that the packages hold what they should, can be made again, and lintian
	$(need) lintian rpm systemd-analyze
	NFPM=$(nfpm) VERSION='$(VERSION)' COMMIT='$(COMMIT)' deploy/package/check.sh

.PHONY: release
release: $(nfpm) $(cyclonedx) man ## dist/release of a tagged commit: packages, image, SBOM and checksums, made twice
	NFPM=$(nfpm) CYCLONEDX=$(cyclonedx) VERSION='$(VERSION)' LDFLAGS="$(ldflags)" deploy/package/release.sh

.PHONY: tools
tools: $(lint) $(nfpm)

# $(call tool,MODULE/COMMAND,VERSION) installs one of a version into .cache/bin.
define tool
GOBIN=$(CURDIR)/.cache/bin CGO_ENABLED=0 go install $(1)@$(2)
mv .cache/bin/$(notdir $(1)) $@
endef
$(lint):
	$(call tool,github.com/golangci/golangci-lint/v2/cmd/golangci-lint,$(GOLANGCI_LINT_VERSION))

IMAGE ?= localhost/kzr
image = VERSION='$(VERSION)' COMMIT='$(COMMIT)' LDFLAGS="$(ldflags)" IMAGE='$(IMAGE)'

.PHONY: image
image: ## dist/kzr-VERSION.oci.tar for ARCHS, without a container engine; IMAGE=registry/kzr
	$(image) deploy/kubernetes/image/build.sh '$(ARCHS)'

.PHONY: image-check
image-check: image ## that it can be made again, and that the Containerfile makes the same
	$(need) skopeo podman readelf python3
	$(image) ARCHS='$(ARCHS)' deploy/kubernetes/image/check.sh

# Its binary takes ten minutes to build, once; it is kept outside the clone, by what it
# is made from. Not on a machine that is a Kubernetes node.
.PHONY: test-kubernetes
test-kubernetes: ## a real Kubernetes: the shipped manifests and chart, Events, RBAC, Pod Security
	$(need) root containerd runc containernetworking-plugins busybox-static ip openssl python3-yaml
	cd test/kubernetes && GOFLAGS=-mod=mod CGO_ENABLED=0 go test -count=1 -timeout 40m $(TESTFLAGS) .
	CGO_ENABLED=0 go test -count=1 -tags kubernetes -run '^TestAPIServer$$' $(TESTFLAGS) ./internal/kubeevents

# kzr only looks meanwhile, at a process of its own that leaks.
.PHONY: alerts-check
alerts-check: build ## alerts played through, and every expression asked of a Prometheus that scraped kzr
	$(need) root promtool python3-yaml jq curl
	promtool check rules deploy/prometheus/kzr.rules.yml
	promtool test rules deploy/prometheus/kzr.rules_test.yml
	deploy/grafana/check.py bin/kzr 180
	deploy/node-problem-detector/check.sh bin/kzr
	deploy/onaction/check.sh bin/kzr

.PHONY: ansible-check
ansible-check: build ## the Ansible role, run on this machine
	$(need) root ansible-playbook
	deploy/ansible/check.sh bin/kzr

$(nfpm):
	$(call tool,github.com/goreleaser/nfpm/v2/cmd/nfpm,$(NFPM_VERSION))
$(cyclonedx):
	$(call tool,github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod,$(CYCLONEDX_VERSION))
