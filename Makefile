# What a developer does, and what each target needs, it sets up: on a fresh
# Debian or Ubuntu with Go, make and root, compilers come from apt-get and Go
# tools into ./.cache. `make help` lists the targets.

GOLANGCI_LINT_VERSION = v2.15.0

# The installed Go must do: never download another one behind the user's back.
export GOTOOLCHAIN = local

BENCH ?= .
ARGS ?=
TESTFLAGS ?=

lint := .cache/bin/golangci-lint-$(GOLANGCI_LINT_VERSION)
# $(call need,COMMAND,PACKAGES) installs the packages when the command is missing.
need = @command -v $(1) >/dev/null || { apt-get -qq update && apt-get -qq install -y --no-install-recommends $(2); }
root = @[ "$$(id -u)" = 0 ] || { echo >&2 "make $@: needs root"; exit 1; }

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: build
build: ## bin/kzr, static
	CGO_ENABLED=0 go build -trimpath -o bin/kzr ./cmd/kzr

.PHONY: run
run: build ## build kzr and run it on this node; flags in ARGS="--dry-run …"
	$(root)
	bin/kzr run $(ARGS)

# One package at a time (-p 1): every test that makes zombies or starts a daemon
# sees the one process table that all share, and a daemon under test would act on
# another package's leaker. Compiling needs no such care, so that comes first.
.PHONY: test
test: ## all tests, with the race detector, on this kernel
	$(root)
	$(call need,cc,gcc libc6-dev)
	$(call need,ps,procps)
	@CGO_ENABLED=1 go test -race -exec true ./... >/dev/null 2>&1 || true
	CGO_ENABLED=1 go test -race -count=1 -p 1 $(TESTFLAGS) ./...

.PHONY: demo
demo: build ## a leaker in a pid namespace, and kzr beside it: 15 seconds
	$(root)
	$(call need,cc,gcc libc6-dev)
	$(call need,ps,procps)
	@deploy/demo.sh

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
