# Works from a fresh clone on Debian or Ubuntu, as root or with sudo. Needs Rust; fetches the rest from Debian's
# packages, PyPI and npm, and only what is missing.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: rust packages drivers bouncer $(shell awk -F ':.*\#\# ' '/^[a-z-]+:.*\#\# / { print $$1 }' $(MAKEFILE_LIST))

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
APT := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get
PYTHON ?= python3
NODE_POSTGRES := pg@8.16.3
FUZZ_SECONDS ?= 60
JDBC_JAR := /usr/share/java/postgresql.jar
GO_DRIVER := /usr/share/gocode/src/github.com/lib/pq
VENV := tests/.venv

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: rust packages drivers ## Install what is missing: PostgreSQL, and the drivers that the tests use

# Debian 13, Ubuntu 24.04 and newer have rustup as a package; Debian's own cargo is too old for this edition.
rust:
	@have=$$(rustc --version 2> /dev/null | sed -nE 's/^rustc 1\.([0-9]+).*/\1/p'); \
	if [ "$${have:-0}" -ge 90 ] && command -v cargo > /dev/null; then exit 0; fi; \
	if ! command -v rustup > /dev/null && command -v apt-get > /dev/null; then \
		(set -x; $(APT) update -qq && $(APT) install -y -qq --no-install-recommends rustup) || true; \
	fi; \
	if command -v rustup > /dev/null; then (set -x; rustup default stable) && exit 0; fi; \
	echo "Rust 1.90 or newer is missing, and no package has it: install it by rustup (https://rustup.rs)" >&2; \
	exit 1

# A C compiler and linker for the crates that need one, the server with its programs, venv for the drivers, and a browser
# for the live page on Debian (Ubuntu's is a snap).
packages:
	@missing=; \
	command -v cc > /dev/null || missing="$$missing build-essential"; \
	compgen -G '/usr/lib/postgresql/*/bin/initdb' > /dev/null || command -v initdb > /dev/null \
		|| [ -x "$${PGWEIR_PG_BIN:-/nonexistent}/initdb" ] || missing="$$missing postgresql"; \
	$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || missing="$$missing python3-venv"; \
	if command -v javac > /dev/null && [ ! -e $(JDBC_JAR) ]; then missing="$$missing libpostgresql-jdbc-java"; fi; \
	if command -v go > /dev/null && [ ! -d $(GO_DRIVER) ]; then missing="$$missing golang-github-lib-pq-dev"; fi; \
	command -v promtool > /dev/null || missing="$$missing prometheus"; \
	command -v prometheus-pgbouncer-exporter > /dev/null || missing="$$missing prometheus-pgbouncer-exporter"; \
	if command -v chromedriver > /dev/null; then :; \
	elif grep -qs '^ID=debian' /etc/os-release; then missing="$$missing chromium chromium-driver"; \
	else echo "no chromium with chromedriver: the tests of the live page will be skipped"; fi; \
	if [ -n "$$missing" ]; then \
		command -v apt-get > /dev/null || { echo "please install:$$missing" >&2; exit 1; }; \
		set -x; $(APT) update -qq && $(APT) install -y -qq --no-install-recommends $$missing; \
	fi

drivers: packages $(VENV)/.installed
	@if ! command -v npm > /dev/null; then \
		echo "no npm: the node-postgres test will be skipped"; \
	elif [ "pg@$$(node -p 'require("./tests/node_modules/pg/package.json").version' 2> /dev/null)" != $(NODE_POSTGRES) ]; then \
		npm install --prefix tests --no-save --no-package-lock --no-audit --no-fund --silent $(NODE_POSTGRES); \
	fi

$(VENV)/.installed: tests/drivers/requirements.txt | packages
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

build: rust ## Build pgweir: target/release/pgweir
	cargo build --release

# What is measured beside other poolers is what a release is.
PROFILED := target/profiled/release/pgweir
release: $(PROFILED) ## Build it with a profile of itself at work, which takes ten minutes: target/profiled/release/pgweir

$(PROFILED): Cargo.toml Cargo.lock benches/release.sh benches/train.py benches/scratch.py config/demo/init.sql $(shell find src -name '*.rs' -o -name '*.html' -o -name '*.js' -o -name '*.css') | rust packages
	benches/release.sh

# The tests' servers live in memory where there is room: that is several times faster than most disks. The unit tests run once
# more as the compiler optimises them: it has been found wrong there (see `src/sql/repeat.rs`).
test: setup ## Run all tests
	@if [ "$$(df --output=avail -m /dev/shm 2> /dev/null | tail -n 1)" -ge 4096 ] 2> /dev/null && [ -w /dev/shm ]; then \
		export TMPDIR=/dev/shm; \
	fi; \
	set -x; cargo test --workspace && cargo test --profile optimised --lib

test-release: release setup ## Run the integration tests with the program of make release
	PGWEIR_TESTED=$(CURDIR)/$(PROFILED) cargo test --test it

# libFuzzer needs flags that only a nightly compiler takes, or a stable one that is told to act as one.
fuzz: rust packages ## Fuzz each target for FUZZ_SECONDS (60)
	@command -v cargo-fuzz > /dev/null || cargo install --locked cargo-fuzz
	@if rustup toolchain list 2> /dev/null | grep -q '^nightly'; then \
		toolchain=+nightly; \
	else \
		echo "no nightly toolchain: RUSTC_BOOTSTRAP=1 makes do with the stable one"; \
		toolchain=; export RUSTC_BOOTSTRAP=1; \
	fi; \
	for target in $$(cargo $$toolchain fuzz list); do \
		mkdir -p fuzz/corpus/$$target; \
		seeds=; \
		if [ $$target = config ]; then seeds=config; fi; \
		if [ $$target = sql ]; then seeds=tests/golden; fi; \
		(set -x; cargo $$toolchain fuzz run $$target fuzz/corpus/$$target $$seeds -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -max_len=4096 -print_final_stats=0) || exit 1; \
	done

demo: rust packages ## A primary, two replicas and sample data behind pgweir, until Ctrl-C
	cargo run --release -- demo

check: rust ## Formatting, lints, documentation, licences
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	@if command -v cargo-deny > /dev/null; then cargo deny check; else echo "no cargo-deny: licences not checked"; fi

clean: ## Remove what was built and installed in this folder
	cargo clean
	rm -rf $(VENV) benches/.venv tests/node_modules fuzz/target fuzz/corpus fuzz/artifacts

# --- PostgreSQL's own regression suite, direct and through pgweir, outputs compared ---

.PHONY: conformance
conformance: build packages ## PostgreSQL's regression suite through pgweir, compared with a direct run
	tests/conformance.sh

# --- What an issue asks to be shown ---

soak: rust packages ## Random dialogues and sessions compared with PostgreSQL's own, with a new seed
	PGWEIR_SEED=random PGWEIR_CASES=$${PGWEIR_CASES:-2000} cargo test --test it differential -- --nocapture
	PGWEIR_SEED=random PGWEIR_CASES=$${PGWEIR_CASES:-2000} cargo test --test it model -- --nocapture

chaos: rust packages ## Clients of every kind while servers die and pgweir is reloaded, paused and killed; CHAOS_SECONDS (120), CHAOS_SEED
	PGWEIR_CHAOS_SECONDS=$(or $(CHAOS_SECONDS),120) PGWEIR_SEED=$(or $(CHAOS_SEED),random) \
		cargo test --test it chaos:: -- --nocapture

show-pgbench: build packages ## pgbench, 50 clients over 5 server connections, every protocol mode; balances add up
	tests/show.sh pgbench

show-primary-alone: build packages ## Every database of a server behind `pgweir run --primary` alone
	tests/show.sh primary_alone

show-never-cross: rust packages ## 2,000 clients on 20 server connections under cancels, disconnects, errors: each answer its own
	PGWEIR_CLIENTS=$${PGWEIR_CLIENTS:-2000} PGWEIR_BACKENDS=$${PGWEIR_BACKENDS:-20} PGWEIR_SECONDS=$${PGWEIR_SECONDS:-30} \
		cargo test --release --test it crossing::no_client_gets_anothers_answer -- --nocapture

show-overload: rust packages ## Goodput and p99 at five times the load that the servers can bear
	PGWEIR_SHOW=1 PGWEIR_SECONDS=$${PGWEIR_SECONDS:-10} \
		cargo test --release --test it overload::at_five_times_the_capacity -- --nocapture

show-stampede: rust packages ## 5,000 clients that want a server back after an outage, let in smoothly
	PGWEIR_STAMPEDE=$${PGWEIR_STAMPEDE:-5000} \
		cargo test --release --test it overload::a_stampede_after_an_outage -- --nocapture

show-network: build packages ## Servers behind links that are slow, lossy and dead, one of them a primary (needs root, ip and tc)
	$(SUDO) tests/network.sh
	$(SUDO) tests/partition.sh

show-page: build packages ## Pictures of the live page under the demo's load, into docs/screenshots
	tests/show.sh page

show-demo: build packages ## psql through `pgweir demo`: \d, a transaction, COPY, \watch, Ctrl-C; every table, log and page has something to show
	tests/show.sh demo

show-exporter: rust packages ## Debian's prometheus-pgbouncer-exporter scrapes pgweir, unchanged
	PGWEIR_SHOW=1 cargo test --test it scraping::pgbouncers_exporter -- --nocapture

show-queries: rust packages ## 1,000,000 statements of 300 fingerprints: exact counts, the same top as pg_stat_statements, quantiles as clients measure
	PGWEIR_STATEMENTS=$${PGWEIR_STATEMENTS:-1000000} PGWEIR_RATE=$${PGWEIR_RATE:-4000} \
		PGWEIR_DISTINCT=$${PGWEIR_DISTINCT:-1000000} \
		cargo test --release --test it queries_at_scale -- --nocapture --test-threads 1

show-metering: build packages ## Instructions of pgweir for each statement, and those of them that count it (needs valgrind)
	tests/show.sh metering

show-import: build packages ## A pgbouncer.ini with its userlist, imported and served
	tests/show.sh import

# Each prints what it measured and what was to be reached, and fails where that was not. Options go in the variable of
# the target's name: make show-speed SPEED="--rounds 5 --cells simple/1,prepared/64/2". PGBOUNCER names another PgBouncer, and
# PGWEIR another pgweir, such as target/release/pgweir.
MEASURED := $(if $(PGWEIR),$(if $(filter target/release/pgweir,$(PGWEIR)),build),release)
show-speed show-large show-tls show-syscalls show-curves show-failover show-reads: export PGWEIR ?= $(PROFILED)

bouncer: packages
	@benches/newer_pgbouncer.sh

show-speed: $(MEASURED) bouncer ## pgweir beside a direct connection and PgBouncer: throughput, p99, CPU and memory, as ratios
	$(PYTHON) benches/compare.py --idle 10000 --idle-tls 2000 $(SPEED)

show-large: $(MEASURED) bouncer ## 1 GB by SELECT and by COPY beside PgBouncer: speed, CPU, memory; clients that read slowly
	$(PYTHON) benches/large.py $(LARGE)

show-tls: $(MEASURED) bouncer ## TLS on both sides beside PgBouncer: throughput and CPU
	$(PYTHON) benches/tls.py $(TLS)

show-syscalls: $(MEASURED) ## System calls of a transaction, counted by strace
	@command -v strace > /dev/null || $(APT) install -y -qq --no-install-recommends strace
	$(PYTHON) benches/syscalls.py $(SYSCALLS)

show-curves: $(MEASURED) bouncer ## Throughput, latency and CPU against clients, pool size, result size …, as CSV and pictures
	@[ -e benches/.venv/.installed ] || { $(PYTHON) -m venv benches/.venv \
		&& benches/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r benches/requirements.txt \
		&& touch benches/.venv/.installed; }
	benches/.venv/bin/python benches/curves.py $(CURVES)

show-performance: show-syscalls show-allocations show-large show-tls show-speed show-curves ## All figures of the README's section on speed

show-allocations: rust packages ## Allocations for each transaction in steady state: none
	PATH="$$PATH:$$(ls -d /usr/lib/postgresql/*/bin 2> /dev/null | tail -n 1)" cargo bench --bench allocations

bench: rust ## Micro-benchmarks of the hot path
	cargo bench --bench pieces

.PHONY: show-deadlocks
show-deadlocks: rust packages ## 32 clients lock accounts in opposed order: deadlocks seen without and with replay, and the throughput
	PGWEIR_CLIENTS=$${PGWEIR_CLIENTS:-32} PGWEIR_SECONDS=$${PGWEIR_SECONDS:-20} \
		cargo test --release --test it bank::a_deadlock_storm -- --nocapture

.PHONY: show-kills
show-kills: rust packages ## Transfers while the server is killed with SIGKILL every 5 s for a minute: nothing lost, nothing doubled
	PGWEIR_CLIENTS=$${PGWEIR_CLIENTS:-32} PGWEIR_SECONDS=$${PGWEIR_SECONDS:-60} PGWEIR_KILL_EVERY_MS=$${PGWEIR_KILL_EVERY_MS:-5000} \
		cargo test --release --test it bank::a_server_killed -- --nocapture

.PHONY: show-routing
show-routing: rust packages ## 100,000 random reads and writes, replicas up to 5 s behind, four failovers: no stale read
	PGWEIR_OPERATIONS=$${PGWEIR_OPERATIONS:-100000} PGWEIR_LAG_MS=$${PGWEIR_LAG_MS:-5000} PGWEIR_SEED=$${PGWEIR_SEED:-1} \
		cargo test --release --test it consistency:: -- --nocapture --test-threads 1

.PHONY: show-failover show-reads
show-failover: $(MEASURED) bouncer ## pgbench while the primary is stopped and a replica is promoted: no statement fails; beside PgBouncer
	$(PYTHON) benches/replicas.py failover $(FAILOVER)

# As root where the machine has the cpu controller: then each server gets a share of the processors of its own.
show-reads: $(MEASURED) packages ## Reads through pgweir with two replicas, against the primary alone
	$(SUDO) env PGWEIR=$$PGWEIR $(PYTHON) benches/replicas.py reads $(READS)

.PHONY: show-listen
show-listen: rust packages ## 5,000 clients that listen on one server connection: nothing lost, nothing doubled, all in order
	PGWEIR_LISTENERS=$${PGWEIR_LISTENERS:-5000} cargo test --release --test it listening_show:: -- --nocapture

# --- Sessions through pgweir are those of a direct connection ---

.PHONY: show-dump show-apps show-migrations
show-dump: build packages ## pg_dump, pg_restore and psql's \d family through pgweir, compared with a direct connection
	tests/show.sh dump

show-apps: build drivers $(VENV)/.shows ## 200 clients of four drivers over 10 connections, with all that a session has; results checked
	tests/show.sh apps

show-migrations: build packages $(VENV)/.shows ## Four Alembic runs at once under a session's advisory lock: one migrates
	tests/show.sh migrations

$(VENV)/.shows: tests/drivers/shows.txt $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
