# What a developer does, and what each target needs, it sets up: on a fresh
# Debian or Ubuntu with the Go of go.mod, make and root, compilers come from
# apt-get and Go tools into ./.cache. `make help` lists the targets.

GOLANGCI_LINT_VERSION = v2.15.0
NFPM_VERSION = v2.45.2

# The installed Go must do: never download another one behind the user's back.
export GOTOOLCHAIN = local

# The clone may be somebody else's, whom git would not trust, and Go would ask git.
# So Go is told, and git is told where to look: here, and not above.
git = git --git-dir=.git
# Of a tag v1.2.3-rc1 it is 1.2.3~rc1, which deb and rpm sort before 1.2.3; of the
# fifth commit after that 1.2.3~rc1+5.gabcdef0. Before any tag, all commits count.
VERSION ?= $(shell { $(git) describe --tags --match 'v[0-9]*' --abbrev=7 || \
	echo v0.1.0-$$($(git) rev-list --count HEAD)-g$$($(git) rev-parse --short=7 HEAD); } 2>/dev/null | \
	sed 's/^v//; s/--g$$//; s/-\([0-9]*\)-g\([0-9a-f]*\)$$/+\1.g\2/; s/-/~/; s/-/./g')
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

BENCH ?= .
ARGS ?=
TESTFLAGS ?=
DURATION ?= 2m
FUZZTIME ?= 10s
SOAKFLAGS ?=

lint := .cache/bin/golangci-lint-$(GOLANGCI_LINT_VERSION)
nfpm := .cache/bin/nfpm-$(NFPM_VERSION)
# $(call need,COMMAND,PACKAGES) installs the packages when the command is missing.
need = @command -v $(1) >/dev/null || $(call install,$(2))
install = { apt-get -qq update && apt-get -qq install -y --no-install-recommends $(1); }
root = @[ "$$(id -u)" = 0 ] || { echo >&2 "make $@: needs root"; exit 1; }

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

# An older Go does not say that it is too old. On a bare Debian there is nothing
# to trust when it downloads modules.
.PHONY: go
go:
	@want=$$(sed -n 's/^go //p' go.mod); have=$$(go version 2>/dev/null | sed 's/.* go\([0-9.]*\).*/\1/'); \
	printf '%s\n' "$$want" "$${have:-0}" | sort -CV || \
		{ echo >&2 "kzr needs Go $$want or later and finds $${have:-none}: see https://go.dev/dl"; exit 1; }
	@! command -v apt-get >/dev/null || [ -e /etc/ssl/certs/ca-certificates.crt ] || $(call install,ca-certificates)
build test test-hostile test-runtimes soak fuzz reliability vmtest test-arm64 generate lint bench man package $(lint) $(nfpm): | go

.PHONY: build
build: ## bin/kzr, static
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$(ldflags)" -o bin/kzr ./cmd/kzr

.PHONY: run
run: build ## build kzr and run it on this node; flags in ARGS="--dry-run …"
	$(root)
	bin/kzr run $(ARGS)

# One package at a time (-p 1): every test that makes zombies or starts a daemon
# sees the one process table that all share, and a daemon under test would act on
# another package's leaker. Compiling needs no such care, so that comes first.
# The storms and the soak have deadlines that only a machine with nothing else to
# do can hold: make test-hostile runs them, and make reliability at length.
hostile = ^Test(Soak|Fault|Scenario(11|22|23|28|29|33|34))

.PHONY: test
test: ## the tests, with the race detector, on this kernel; storms, faults and soak are test-hostile
	$(root)
	$(call need,cc,gcc libc6-dev)
	$(call need,ps,procps)
	$(call need,tmux,tmux)
	@CGO_ENABLED=1 go test -race -exec true ./... >/dev/null 2>&1 || true
	CGO_ENABLED=1 go test -race -count=1 -p 1 -skip '$(hostile)' $(TESTFLAGS) ./...
	@for p in containerd dockerd podman runc; do \
		command -v $$p >/dev/null || echo "not tested with $$p, which is not installed: see make test-runtimes"; \
	done

.PHONY: test-hostile
test-hostile: ## the rest: storms, faults and DURATION of soak, on a machine with nothing else to do
	$(root)
	$(call need,cc,gcc libc6-dev)
	$(call need,ps,procps)
	KZR_SOAK=$(DURATION) CGO_ENABLED=1 go test -race -count=1 -timeout 0 -run '$(hostile)' $(TESTFLAGS) ./internal/e2e

# They get state, sockets and cgroups of their own, beside those of the machine.
# Where systemd runs, Debian's packages also start a dockerd for the machine.
.PHONY: test-runtimes
test-runtimes: ## the tests with containerd, docker and podman
	$(root)
	$(call need,cc,gcc libc6-dev)
	$(call need,containerd,containerd)
	$(call need,runc,runc)
	$(call need,dockerd,docker.io)
	$(call need,podman,podman)
	KZR_REQUIRE_RUNTIMES=1 CGO_ENABLED=1 go test -race -count=1 $(TESTFLAGS) ./internal/runtimes

# A failure names its seed and case; KZR_SOAK_SEED and KZR_SOAK_CASE do it again.
.PHONY: soak
soak: ## random good and bad processes, and an oracle: DURATION=1h, 2m if not said
	$(root)
	$(call need,cc,gcc libc6-dev)
	KZR_SOAK=$(DURATION) go test -count=1 -timeout 0 -run '^TestSoak$$' $(SOAKFLAGS) ./internal/e2e

# The tests run what is in testdata/fuzz, this looks for more; what fails is put
# there, to be committed with what mends it. Before 1.27 Go can take the end of the
# time for a failure (go.dev/issue/75804): what counts is what is there then.
.PHONY: fuzz
fuzz: ## every Fuzz function there is, one after the other, for FUZZTIME=10s each
	$(root)
	@all=$$(go test -list '^Fuzz' ./...) || { echo "$$all"; exit 1; }; \
	echo "$$all" | awk '/^Fuzz/ { f[n++] = $$1 } /^ok/ { for (i = 0; i < n; i++) print $$2, f[i]; n = 0 }' | { \
		failed=; \
		while read -r package f; do \
			echo "$$package $$f"; \
			go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$package </dev/null || \
				go test -run "^$$f\$$" $$package || failed="$$failed $$f"; \
		done; \
		[ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }; \
	}

# The half million zombies of the storm take 5 GB of the kernel's memory. Where pids
# change hands, kzr is stopped at each system call: so no storm beside it. The tables
# are written even if a test fails, and say so.
at_length = KZR_SOAK=$(DURATION) KZR_REUSE=2000 KZR_STORM=500000 KZR_FLASH_SECONDS=60 KZR_HOSTILE_SECONDS=60 KZR_STOP_SECONDS=60
.PHONY: reliability
reliability: ## run all that is to be survived, at length, and write docs/RELIABILITY.md
	$(root)
	$(call need,cc,gcc libc6-dev)
	$(call need,ps,procps)
	@mkdir -p .cache
	rm -f .cache/vm/*-tests.log
	$(MAKE) vmtest ARGS="trixie bookworm bullseye arm64 tests" || true
	for tests in "-skip $(hostile)" "-run $(hostile) -skip ^TestScenario11" "-run ^TestScenario11"; do \
		$(at_length) go test -json -count=1 -timeout 0 $$tests ./internal/e2e || true; \
	done >.cache/reliability.json
	$(at_length) KZR_COMMIT=$$(git rev-parse --short HEAD) go run ./internal/reliability .cache/vm/*-tests.log <.cache/reliability.json >docs/RELIABILITY.md

.PHONY: vmtest
vmtest: ## kernel tests and the package on Debian 11, 12 and 13 (from its archive), in QEMU; ARGS="bookworm tests"; arm64 with ARGS=arm64
	$(root)
	$(call need,cc,gcc libc6-dev)
	$(call need,qemu-system-x86_64,qemu-system-x86)
	$(call need,mmdebstrap,mmdebstrap)
	$(call need,cpio,cpio)
	@[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || $(call install,debian-archive-keyring)
ifneq ($(filter arm64,$(ARGS)),)
	$(call need,qemu-system-aarch64,qemu-system-arm)
	$(call need,aarch64-linux-gnu-gcc,gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
endif
	deploy/vm/vmtest.sh $(ARGS)

# On an emulated processor, and this kernel. What the emulator answers itself, as
# bpf, ptrace and clone's namespaces, would be a test of the emulator; and a test
# that starts itself again cannot. See docs/PLATFORMS.md.
arm64 = GOARCH=arm64 CGO_ENABLED=0 go test -count=1 -exec qemu-aarch64-static $(TESTFLAGS)
arm64_procscan = Parse Dead$$ Field SplitCmdline NextPID Chain Hidden SnapshotLeaker SnapshotCounts SnapshotNever \
	Inspect$$ InspectGone InspectZombie InspectHostile Node
arm64_reaper = Kills Reservation PerWorkload OneAtATime Changed LimitsAre Ladder Fresh Vanishes Identity PutOff \
	ZombiesMove DryRun Cancel RateLimited Blind Waiting Rehearse$$
# $(call arm64_some,PACKAGE,NAME...): its tests that begin so, and each does.
define arm64_some
@all=$$($(arm64) -list . $(1)) || { echo "$$all"; exit 1; }; for name in $(2); do \
	echo "$$all" | grep -q "^Test$$name" || { echo >&2 "$(1) has no test that begins with $$name"; exit 1; }; done
$(arm64) -run '^Test($(subst $() ,|,$(strip $(2))))' $(1)
endef
.PHONY: test-arm64
test-arm64: ## the tests that do not need an arm64 kernel, on arm64
	$(root)
	$(call need,cc,gcc libc6-dev)
	$(call need,qemu-aarch64-static,qemu-user-static)
	$(arm64) ./internal/advice ./internal/config ./internal/container ./internal/daemon ./internal/glob \
		./internal/policy ./internal/top ./internal/tracker
	$(arm64) -skip '^TestListenPeers$$' ./internal/report
	$(call arm64_some,./internal/procscan,$(arm64_procscan))
	$(call arm64_some,./internal/reaper,$(arm64_reaper))

.PHONY: demo
demo: build ## a leaker in a pid namespace, and kzr beside it: 15 seconds
	$(root)
	$(call need,cc,gcc libc6-dev)
	$(call need,ps,procps)
	@deploy/demo.sh

.PHONY: screenshot
screenshot: build ## docs/top.svg: kzr top over tenants that leak, drawn from a real terminal
	$(root)
	$(call need,cc,gcc libc6-dev)
	$(call need,tmux,tmux)
	go run ./internal/screenshot -kzr bin/kzr -out docs

# What the compiler was goes into bpf/CLANG: only the same one makes the same bytes.
.PHONY: generate
generate: ## compile bpf/*.bpf.c (clang) and write the Go beside it
	$(call need,clang,clang)
	$(call need,llvm-strip,llvm)
	go generate ./...
	@clang --version | head -n 1 >bpf/CLANG

.PHONY: lint
lint: $(lint) ## gofmt, golangci-lint
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }
	$(lint) run

$(lint):
	GOBIN=$(CURDIR)/.cache/bin CGO_ENABLED=0 go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv .cache/bin/golangci-lint $@

.PHONY: bench
bench: ## kzr's costs as ratios, side by side in one run; one of them: BENCH=Name
	$(root)
	$(call need,cc,gcc libc6-dev)
	$(call need,ps,procps)
	CGO_ENABLED=0 go test -run '^$$' -bench '$(BENCH)' -benchtime 1x -timeout 30m -p 1 ./...

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
	$(call need,lintian,lintian)
	$(call need,rpm,rpm)
	$(call need,systemd-analyze,systemd)
	NFPM=$(nfpm) VERSION='$(VERSION)' COMMIT='$(COMMIT)' deploy/package/check.sh

$(nfpm):
	GOBIN=$(CURDIR)/.cache/bin CGO_ENABLED=0 go install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION)
	mv .cache/bin/nfpm $@
