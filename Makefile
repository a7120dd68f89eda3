# `make demo` and `make test` need Go and a container engine; nothing else is to
# be set up by hand.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)
# The race detector needs a C compiler.
RACE     := $(if $(shell command -v gcc),-race)
E2E_TIMEOUT ?= 60m
# What leaves out of the end-to-end tests what CI has no time for; e2e-full has it all.
SHORT    := -short
FUZZTIME ?= 30s

.PHONY: build lab parts test e2e e2e-snapshot e2e-full demo bench fuzz release lint generate

build: ## bin/migrate for this machine
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/migrate ./cmd/migrate

lab: ## bin/lab, the disposable hosts
	cd lab && CGO_ENABLED=0 $(GO) build -trimpath -o ../bin/lab .

test: lint ## unit tests of product and lab, no container engine needed; with Chromium also of the report's looks
	$(GO) test $(RACE) -timeout 25m ./...
	cd lab && $(GO) test ./...

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "not gofmt-ed: $$unformatted"; exit 1; }
	$(GO) vet -tags 'e2e vm' ./...

e2e: build lab parts ## a migration in the lab, asserted from outside the product
	KUBERNETES_PARTS=$(CURDIR)/bin/parts $(GO) test -tags e2e -count 1 $(SHORT) -timeout $(E2E_TIMEOUT) -v -skip '^TestBySnapshot$$' ./e2e ./cluster ./openbao
	KUBERNETES_PARTS=$(CURDIR)/bin/parts $(GO) test -tags e2e -count 1 -timeout 10m -v -run '^TestBao' ./steps

# Roots on btrfs and the like: minutes for each restart of a virtual machine, more than CI has time for.
SLOW_VM := ^Test(Btrfs|ZFS)VM

e2e-snapshot: build lab parts ## snapshots: a lab host taken back by one; LVM in virtual machines (no KVM needed), btrfs and ZFS on this one
	KUBERNETES_PARTS=$(CURDIR)/bin/parts $(GO) test -tags e2e -count 1 -timeout 20m -v -run '^TestBySnapshot$$' ./e2e
	$(GO) test -tags 'e2e vm' -count 1 -timeout 30m -v -skip '$(SLOW_VM)' ./snapshot

e2e-full: SHORT :=
e2e-full: E2E_TIMEOUT := 150m
e2e-full: e2e e2e-snapshot ## both, and what takes longer than CI may: every way of installation, a kill at every record, roots on btrfs in virtual machines
	$(GO) test -tags 'e2e vm' -count 1 -timeout 60m -v -run '$(SLOW_VM)' ./snapshot

parts: lab
	bin/lab build --control-plane bin/parts

demo: build lab ## from nothing to a migrated lab host; KEEP=1 leaves it up
	lab/demo.sh

bench: ## benchmarks, the 4 GiB volume stream among them
	$(GO) test -run '^$$' -bench . -benchtime 1x ./...

fuzz: ## every fuzz target for FUZZTIME
	@for target in $$(grep -rhoE --include='*_test.go' 'func Fuzz[A-Za-z0-9_]+' -l . --exclude-dir=lab | sort -u); do \
		for f in $$(grep -oE 'func Fuzz[A-Za-z0-9_]+' $$target | cut -c6-); do \
			$(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) ./$$(dirname $$target) || exit; \
		done; \
	done

release: ## dist/migrate-OS-ARCH for every platform, with their sums
	@mkdir -p dist
	@for os in linux darwin; do for arch in amd64 arm64; do \
		echo "dist/migrate-$$os-$$arch"; \
		CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o dist/migrate-$$os-$$arch ./cmd/migrate || exit; \
	done; done
	cd dist && sha256sum migrate-* > SHA256SUMS

generate: ## the plan's JSON schema
	$(GO) generate ./...
