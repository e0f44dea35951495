# Each target does all its own set-up. `make help` lists them; tools/setup.sh says what the set-up changes.

SHELL := /bin/sh
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup venv demo test unit bench bench-failover bench-full soak faults guests fuzz lint clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

setup: ## install what is missing: Debian packages, .venv, huge pages (root)
	@tools/setup.sh packages venv pages

venv:
	@tools/setup.sh venv

demo: setup ## upgrade OVS 3.1 to 3.5 under four QEMU guests, and back (root)
	$(BIN)/ovs-hotswap lab demo --report demo-report.json

test: setup ## all tests: unit, then integration on the real OVS, DPDK and QEMU (root)
	$(BIN)/pytest tests/unit
	$(BIN)/pytest tests/integration

unit: venv ## the unit tests alone
	$(BIN)/pytest tests/unit

bench: setup ## measure the hand-over against a plain restart (root)
	$(BIN)/python -m tests.bench --report bench-report.json

soak: setup ## 300 upgrades back and forth under traffic (root)
	$(BIN)/python -m tests.bench soak --report soak-report.json

faults: setup ## strike each process at each moment, with and without an upgrade: the whole matrix, one to two hours (root)
	$(BIN)/python -m tests.faults --report faults-report.json

bench-failover: setup ## measure a crash's fail-over of 1, 16 and 64 VMs against a plain restart (root)
	$(BIN)/python -m tests.bench failover --report failover-report.json

bench-full: setup ## all benchmarks but the soak, and docs/performance.md from them (root)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action ignore -e '.[bench]'
	for name in scale alternatives phases failover; do $(BIN)/python -m tests.bench $$name || status=1; done; \
	$(BIN)/python -m tests.bench report && exit $$status

guests: setup ## every kind of guest through an upgrade, and docs/guests.md from it (root)
	$(BIN)/python -m tests.bench kinds --page docs/guests.md

fuzz: venv ## a million inputs for everything that reads what a QEMU says
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action ignore -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz.session -runs=1000000 -max_len=2048 -print_final_stats=1 tests/fuzz/corpus

lint: venv ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove .venv and all caches, put the huge pages back as they were
	@tools/clean.sh
