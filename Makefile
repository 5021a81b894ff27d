# SPDX-License-Identifier: Apache-2.0
# What a person types. `make help` lists the targets; each installs what it needs and says so.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# What building needs: the libraries that rust-corosync links, and gcc for the bare test guests.
BUILD_PACKAGES := gcc libc6-dev make pkg-config libcpg-dev libcfg-dev libcmap-dev libquorum-dev \
	libvotequorum-dev
# What the test beds need on the machine itself; the nodes' own packages are installed in the nodes.
BED_PACKAGES := mmdebstrap iproute2 util-linux procps qemu-system-x86 busybox-static kmod cpio \
	iperf3 xz-utils zstd e2fsprogs dosfstools mtools fdisk gdisk libxml2-utils resource-agents \
	nftables
# What looks at the packages that were built: rpm's own tools, and the judges of both formats.
JUDGE_PACKAGES := rpm rpmlint lintian

CARGO ?= cargo
# cargo-fuzz needs a compiler with unstable options.
FUZZ_TOOLCHAIN ?= nightly
FUZZ_SECONDS ?= 300
# One seed of the simulator, with its story; or so many.
SEED ?=
SEEDS ?= 100000
FROM ?= 0
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard engine/fuzz/fuzz_targets/*.rs)))
DEB_DIRECTORY := target/debian
RPM_DIRECTORY := target/rpm
export KEMARI_DEB_DIRECTORY := $(abspath $(DEB_DIRECTORY))
export KEMARI_RPM_DIRECTORY := $(abspath $(RPM_DIRECTORY))

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | \
		awk -F ':.*## ' '{ printf "make %-18s %s\n", $$1, $$2 }'

.PHONY: demo
demo: root package ## Watch a Linux guest survive the loss of its host, in a cluster of three nodes
	$(CARGO) run --release --package kemari-cluster-tests --bin demo

.PHONY: test
test: root lint package ## Run every test: lints, units, bare guests on /dev/kvm, both test beds
	$(CARGO) test --workspace --no-fail-fast -- --show-output

.PHONY: build
build: tools ## Build the programs
	$(CARGO) build --release --workspace --bins

.PHONY: package
package: build pages cargo-deb cargo-generate-rpm ## Build the packages of hosts and witnesses: .deb into target/debian, .rpm into target/rpm
	rm -f $(DEB_DIRECTORY)/kemari*.deb $(RPM_DIRECTORY)/kemari*.rpm
	mkdir -p $(RPM_DIRECTORY)
	for package in ocf agent; do \
		$(CARGO) deb --package kemari-$$package --no-build --fast --output $(DEB_DIRECTORY)/; \
		$(CARGO) generate-rpm --package $$package --auto-req find-requires \
			--payload-compress gzip --output $(RPM_DIRECTORY)/; \
	done

.PHONY: pages
pages: tools ## Write kemarictl's manual pages and shell completions into target/pages
	$(CARGO) run --quiet --release --package kemari-agent --example pages -- target/pages

.PHONY: book
book: mdbook ## Build the book of docs/ into target/book
	mdbook build docs

.PHONY: lint
lint: tools cargo-deny ## Check formatting, lints, licences and advisories
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) deny check licenses bans sources

.PHONY: fuzz
fuzz: cargo-fuzz ## Fuzz every target for FUZZ_SECONDS (300) each; the fuzzer stops at what it finds
# What is fuzzed has the versions of what is shipped.
	cp Cargo.lock engine/fuzz/Cargo.lock
	for target in $(FUZZ_TARGETS); do \
		echo "Fuzzing $$target for $(FUZZ_SECONDS) s"; \
		mkdir -p engine/fuzz/corpus/$$target; \
		$(CARGO) +$(FUZZ_TOOLCHAIN) fuzz run --fuzz-dir engine/fuzz $$target engine/fuzz/corpus/$$target \
			$$(ls -d engine/fuzz/seeds/$$target engine/*/fuzz-regressions/$$target 2>/dev/null) \
			-- -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=2048 \
			-len_control=0 -max_len=4096 -print_final_stats=1; \
	done

.PHONY: sim
sim: rust ## Simulate SEEDS (100000) histories of a pair with every fault; SEED=n tells one as a story
	$(if $(SEED),SEED=$(SEED)) SEEDS=$(SEEDS) FROM=$(FROM) $(CARGO) test --quiet --release \
		--package kemari-replication --test simulator campaign -- --ignored --nocapture

.PHONY: model
model: rust ## Check the model of who may run within larger bounds (some minutes); counts are printed
	$(CARGO) test --quiet --release --package kemari-agent --test model -- --include-ignored \
		--nocapture --test-threads=1

.PHONY: bench
bench: root package ## Measure checkpoints, copies and failover beside their baselines (a quarter of an hour)
	$(CARGO) build --release --package kemari-cluster-tests --bin bench
	target/release/bench --output target/bench.jsonl
	$(CARGO) test --release --package kemari-cluster-tests --test failover -- --nocapture

.PHONY: compare
compare: root package ## Lose hosts and VMMs under ocf:heartbeat:VirtualDomain and under Kemari, on the same nodes (half an hour)
	$(CARGO) test --release --package kemari-cluster-tests --test compare -- --ignored --nocapture --test-threads=1

.PHONY: campaign-guest
campaign-guest: root package ## Run Debian servers for hours under QEMU and Kemari, and compare them
	$(CARGO) test --release --package kemari-cluster-tests --test server_campaign -- --ignored \
		--nocapture --test-threads=1

.PHONY: campaign-pacemaker
campaign-pacemaker: root package ## What takes too long for make test: Pacemaker's decisions, old records, hardware, bed B (an hour)
	$(CARGO) test --release --package kemari-cluster-tests --test pacemaker_decisions \
		--test old_records --test hardware --test machines -- --ignored --nocapture --test-threads=1

.PHONY: campaign-failover
campaign-failover: root package ## A hundred failovers in a row (ten minutes)
	KEMARI_FAILOVERS=100 $(CARGO) test --release --package kemari-cluster-tests --test failover in_a_row -- --nocapture

.PHONY: campaign-cts
campaign-cts: root package ## Run 100 tests of Pacemaker's cluster test suite with a VM as the resource (an hour)
	$(CARGO) test --release --package kemari-cluster-tests --test cts -- --ignored --nocapture

.PHONY: histories
histories: root package ## Carry out 200 random histories of losses in clusters of 2, 3 and 4 nodes (hours)
	$(CARGO) test --release --package kemari-cluster-tests --test histories -- --include-ignored \
		--nocapture --test-threads=1

.PHONY: clean
clean: ## Remove what was built here (the test beds' cache stays, see clean-cache)
	$(CARGO) clean

.PHONY: clean-cache
clean-cache: ## Remove the test beds' root file systems and kernels
	rm -rf "$${KEMARI_TEST_CACHE:-/var/cache/kemari-tests}"

# --- set-up -----------------------------------------------------------------------------------

.PHONY: root
root:
	@if [ "$$(id -u)" != 0 ]; then \
		echo "make: the test beds make network namespaces and mounts: run this as root" >&2; \
		exit 1; \
	fi

.PHONY: tools
tools: rust
	@missing=$$(for package in $(BUILD_PACKAGES) $(BED_PACKAGES) $(JUDGE_PACKAGES); do \
		dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || \
		echo $$package; done); \
	if [ -n "$$missing" ]; then \
		echo "Installing Debian packages:" $$missing; \
		if [ "$$(id -u)" != 0 ]; then echo "make: run this as root to install them" >&2; exit 1; fi; \
		apt-get update -q; \
		DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	fi

# The beds fetch kernels by apt: it must know what there is.
	@ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1 || apt-get update -q

.PHONY: rust
rust:
	@command -v $(CARGO) >/dev/null || { \
		echo "make: cargo is missing: install Rust 1.95 or newer, for example by rustup" >&2; \
		exit 1; }

.PHONY: cargo-deb
cargo-deb: tools
	@$(CARGO) deb --version >/dev/null 2>&1 || { \
		echo "Installing cargo-deb (builds the Debian package)"; \
		$(CARGO) install --locked cargo-deb@3.8.0; }

.PHONY: cargo-generate-rpm
cargo-generate-rpm: tools
	@$(CARGO) generate-rpm --version >/dev/null 2>&1 || { \
		echo "Installing cargo-generate-rpm (builds the packages of Fedora and its kin)"; \
		$(CARGO) install --locked cargo-generate-rpm@0.21.1; }

.PHONY: mdbook
mdbook: rust
	@command -v mdbook >/dev/null || { \
		echo "Installing mdbook (builds the book)"; \
		$(CARGO) install --locked --no-default-features mdbook@0.5.4; }

.PHONY: cargo-deny
cargo-deny: tools
	@$(CARGO) deny --version >/dev/null 2>&1 || { \
		echo "Installing cargo-deny (checks licences and sources)"; \
		$(CARGO) install --locked cargo-deny@0.20.2; }

.PHONY: cargo-fuzz
cargo-fuzz: tools
	@$(CARGO) +$(FUZZ_TOOLCHAIN) --version >/dev/null 2>&1 || { \
		echo "Installing Rust's $(FUZZ_TOOLCHAIN) (compiles with coverage for fuzzing)"; \
		rustup toolchain install --profile minimal $(FUZZ_TOOLCHAIN); }
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { \
		echo "Installing cargo-fuzz (runs libFuzzer)"; \
		$(CARGO) install --locked cargo-fuzz@0.13.2; }
