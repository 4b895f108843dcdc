# Thin: each target says what it lacks, does one thing, and may be repeated.

CARGO   ?= cargo
NAME    ?= lab
PROFILE ?= dev
TARGET  := $(or $(CARGO_TARGET_DIR),target)
BIN     := $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# A lab is made of namespaces: root. What is built stays yours.
ROOT    := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=HOME,PATH,TRELLIS_CONFIG,TRELLIS_LAB_DIR)

.DEFAULT_GOAL := help
.PHONY: help build lab lab-down test test-vm bench check fmt dist release deb next

help: ## This list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

build: ## All programs (PROFILE=dev)
	@scripts/need build
	@$(CARGO) build --profile $(PROFILE) --bins

lab: ## From nothing to a running cluster of five nodes on this machine, and a demonstration (NAME=lab)
	@scripts/need build
	@scripts/need lab
	@$(CARGO) build --profile $(PROFILE) --bins
	@$(ROOT) $(BIN)/trellis-lab -n $(NAME) up --if-missing
	@$(ROOT) $(BIN)/trellis-lab -n $(NAME) demo

lab-down: ## Remove that cluster; nothing is left (NAME=lab)
	@test -x $(BIN)/trellis-lab || scripts/need build
	@test -x $(BIN)/trellis-lab || $(CARGO) build --profile $(PROFILE) -p trellis-lab --bin trellis-lab
	@$(ROOT) $(BIN)/trellis-lab -n $(NAME) down

test: ## Every test, the end-to-end ones on a real lab included; ends with what ran, what was skipped, why
	@scripts/need build
	@scripts/need test
	@scripts/test

bench: ## Measure, beside etcd and podman where they are installed; writes target/bench/latest.json
	@scripts/need build
	@scripts/need bench
	@$(CARGO) build --release --bins
	@mkdir -p target/bench
	@$(ROOT) $(TARGET)/release/trellis-lab bench

check: ## Formatting, lints as errors, licences and advisories, documentation
	@scripts/need build
	@scripts/need check
	@scripts/check

fmt: ## Format the source
	@$(CARGO) fmt --all

dist: ## Optimised programs with what installs them, as a tarball in target/dist
	@scripts/need build
	@$(CARGO) build --release --bins
	@scripts/dist $(TARGET)/release

release: dist ## dist, by another name

deb: dist ## The same as Debian packages
	@scripts/deb $$(ls -td $(TARGET)/dist/trellis-*/ | head -1)

next: ## The same sources under the next version, as a tarball in target/next/dist: what an upgrade is tried with
	@scripts/need build
	@scripts/next

test-vm: ## What namespaces cannot show, on VMs under emulation: an hour and more, resumable (see docs/test-vm.md)
	@scripts/need vm
	@$(ROOT) packaging/vm/test
