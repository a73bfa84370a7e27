# What a person wants to do here. Each target is one intent; the scripts hold the how.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
export GOBIN ?= $(CURDIR)/.cache/bin
export PATH  := $(GOBIN):$(PATH)

.PHONY: help build demo test check unit race fuzz long bench package tools clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build: ## bin/qbackup, statically linked
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/qbackup ./cmd/qbackup

demo: ## the main job from end to end, with nothing installed but Go
	$(GO) run ./cmd/qbackup demo

test: tools check unit fuzz ## everything CI runs: installs what the tests need, then checks, tests and fuzzes briefly

check: ## gofmt, go vet, staticcheck
	scripts/check

unit: ## all tests at their reduced counts
	$(GO) test -timeout 30m ./...

race: ## all tests under the race detector
	$(GO) test -race -timeout 30m ./...

fuzz: ## every fuzz target on some inputs (FUZZTIME=1m for longer)
	scripts/fuzz

long: tools ## every proof at full count, in resumable pieces that append to .cache/long.log
	scripts/long

bench: ## benchmarks of all packages
	$(GO) test -run '^$$' -bench . -benchmem ./...

package: ## deb and rpm in dist/, made twice with equal bytes (VERSION=1.2.3)
	scripts/package

tools: ## install what the tests need (Debian packages as root, Go tools into .cache/bin)
	scripts/tools

clean: ## remove what was built
	rm -rf bin dist .cache
