# Each target does all its own set-up. `make help` lists them; tools/setup.sh says what the set-up changes.

SHELL := /bin/sh
BIN := .venv/bin
# What gives each VM two back ends: broker or qemu-dual. The earlier name of this variable is ROAD.
BACKEND ?= $(or $(ROAD),broker)
# Where `make packages` unpacks what it built, for what needs it without installing it.
export OVS_HOTSWAP_PACKAGES ?= $(CURDIR)/build/packages/root/opt/ovs-hotswap
.DEFAULT_GOAL := help
.PHONY: help setup test-setup venv test-venv test-trees demo test unit mutants bench bench-failover bench-full bench-patched bench-modes bench-roads bench-takeover bench-window bench-bursts bench-trace bench-flowlog bench-hosts bench-diagnose bench-metrics bench-fleet soak soak-cuts soak-packages soak-uplinks soak-hosts flowlog neutron faults guests packages-setup packages packages-qemu packages-check lock man fuzz lint clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-15s %s\n", $$1, $$2 }'

setup: ## install what is missing: Debian packages, .venv, huge pages (root)
	@tools/setup.sh packages venv pages

test-setup: ## install what the tests need besides: a browser, Ansible, sshd (root)
	@tools/setup.sh test-packages test-venv

test-venv:
	@tools/setup.sh test-venv

venv: ## make .venv with this program and its tools
	@tools/setup.sh venv

demo: setup $(if $(filter qemu-dual,$(BACKEND)),packages-qemu) ## upgrade OVS 3.1 to 3.5 under four QEMU guests, and back; BACKEND=qemu-dual: without a broker (root)
	$(BIN)/ovs-hotswap lab demo --backend $(BACKEND) --report demo-report.json

test: setup test-setup ## all tests: unit, then integration on the real OVS, DPDK and QEMU, stock and patched (root)
	@$(MAKE) --no-print-directory -j2 packages test-trees
	$(BIN)/pytest tests/collection tests/unit -n 3 --dist worksteal
	$(BIN)/pytest tests/integration

test-trees:
	@$(BIN)/python -m tests.support.trees

unit: test-venv ## the unit tests alone, and which share of the lines they run
	$(BIN)/pytest tests/unit --cov=ovs_hotswap --cov-report=term:skip-covered

mutants: test-venv ## how many small faults in the pure core the unit tests notice; stop and resume as you like; MUTANTS="plan/records.py": one module
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action ignore -e '.[mutants]'
	$(BIN)/python -m tools.mutants $(MUTANTS)

bench: setup ## measure the handover against a plain restart (root)
	$(BIN)/python -m bench --report bench-report.json

soak: setup ## 300 upgrades back and forth under traffic (root)
	$(BIN)/python -m bench soak --report soak-report.json

soak-cuts: setup test-setup ## cut the connection of --host at each step of an upgrade, with an upgrade for each (root)
	OVS_HOTSWAP_CUTS=each $(BIN)/pytest tests/integration/test_remote_upgrade.py

soak-uplinks: setup test-setup ## ROUNDS=10 upgrades and ways back for each driver of the uplink and each underlay of the lab, with real packets (root)
	OVS_HOTSWAP_UPLINK_ROUNDS=$(or $(ROUNDS),10) $(BIN)/pytest -s $(wildcard tests/integration/test_uplink_*.py)

soak-hosts: setup test-setup ## ROUNDS=10 hosts of each kind that others program: an upgrade and back under traffic, each packet counted; then kills at every step (root)
	OVS_HOTSWAP_STOCK_ROUNDS=$(or $(ROUNDS),10) $(BIN)/pytest -s tests/integration/test_stock_host.py tests/integration/test_stock_upgrade.py tests/integration/test_stock_libvirt.py tests/integration/test_stock_docs.py tests/integration/test_stock_neutron.py $(wildcard tests/integration/test_stock_strikes*.py)

flowlog: setup test-setup ## the flow log with real collectors: an upgrade and back, a failover, others' samples in wire mode (root)
	OVS_HOTSWAP_FLOWLOG=1 $(BIN)/pytest tests/integration/test_flowlog.py \
		tests/integration/test_wire.py::test_what_a_pipeline_samples_is_exported_by_one_switch_at_a_time

neutron: setup test-setup ## a host with the own server and agent of Neutron: an upgrade and back under traffic (root)
	tools/neutron.sh $(CURDIR)/build/neutron
	OVS_HOTSWAP_NEUTRON=$(CURDIR)/build/neutron $(BIN)/pytest -s tests/integration/test_stock_neutron.py

soak-packages: setup packages ## ROUNDS=10 times upgrade and downgrade the package under VMs, and replace the distribution's; a dist-upgrade (root)
	OVS_HOTSWAP_PACKAGE_ROUNDS=$(or $(ROUNDS),10) $(BIN)/pytest tests/integration/test_deb_rounds.py

faults: setup ## strike each process at each moment, with and without an upgrade, cold and warm: the whole matrix, hours; FAULTS="--resume": what is left of it (root)
	$(BIN)/python -m tests.faults $(FAULTS) --report faults-report.json; cold=$$?; \
	$(BIN)/python -m tests.faults $(FAULTS) --warm --report faults-warm-report.json && exit $$cold

bench-failover: setup ## measure a crash's failover of 1, 16, 64 and 255 VMs against a plain restart (root)
	$(BIN)/python -m bench failover --report failover-report.json

bench-full: setup ## all benchmarks but the soak, and docs/performance.md from them (root)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action ignore -e '.[bench]'
	for name in scale alternatives phases failover; do $(BIN)/python -m bench $$name || status=1; done; \
	$(BIN)/python -m bench report && exit $$status

bench-patched: setup packages ## handovers with 64 and 255 VMs on the patched switch; after bench-full also its page (root)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action ignore -e '.[bench]'
	$(BIN)/python -m bench scale --cases 64 255 --report patched-report.json \
		--from-directory "$$(ls -d $(OVS_HOTSWAP_PACKAGES)/ovs-* | tail -n 1)"
	$(BIN)/python -m bench report

bench-modes: setup packages-qemu ## moves with a broker and without one, side by side, and crashes (root)
	$(BIN)/python -m bench modes --report modes-report.json

bench-roads: bench-modes

bench-takeover: setup ## this version's broker takes over from another version's under QEMU guests, and the way back; OTHER=/path/of/its/.venv/bin/python (root)
	$(BIN)/python -m bench takeover $(OTHER) --report takeover-report.json

bench-window: setup ## what a frame costs inside a window against outside: the overlay's window and wire mode (root)
	$(BIN)/python -m bench window --report window-report.json

bench-flowlog: setup ## what the flow log costs: cycles and latency of a frame, and exporting many flows at once (root)
	$(BIN)/python -m bench flowlog --report flowlog-report.json

bench-trace: setup ## what a trace costs the traced VM and the others, by several ways of copying packets (root)
	$(BIN)/python -m bench trace --report trace-report.json

bench-bursts: setup test-setup ## packets lost in bursts before and after what `bursts` advises, in one run (root)
	$(BIN)/python -m bench bursts --report bursts-report.json

bench-hosts: setup ## take over 30 and 64 VMs of a running switch that others program, beside a reconnect and a restart (root)
	$(BIN)/python -m bench hosts --report hosts-report.json

bench-diagnose: setup ## how long `diagnose` takes with 16 and 255 healthy VMs, and that it finds nothing (root)
	$(BIN)/python -m bench diagnose --report diagnose-report.json

bench-metrics: setup test-setup ## a real Prometheus through an upgrade and a failover, and what a scrape costs with up to 255 VMs (root)
	OVS_HOTSWAP_METRICS=1 $(BIN)/pytest tests/integration/test_metrics_live.py
	$(BIN)/python -m bench scrape --report scrape-report.json

bench-fleet: venv ## simulate runs over 10 000 hosts, and write the tables and plots of docs/fleet.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action ignore -e '.[bench]'
	$(BIN)/python -m bench fleet

guests: setup $(if $(filter qemu-dual,$(BACKEND)),packages) ## every kind of guest through an upgrade, and its part of docs/guests.md; BACKEND=qemu-dual: without a broker (root)
	$(BIN)/python -m bench kinds --backend $(BACKEND) --page docs/guests.md

packages-setup:
	@tools/setup.sh packages venv

packages: packages-setup ## build ovs-hotswap, patched QEMU and Open vSwitch as Debian packages, in build/packages; ONLY=hotswap: one of them (root)
	$(BIN)/python -m tools.packages $(ONLY)

packages-qemu: packages-setup
	$(BIN)/python -m tools.packages qemu

packages-check: packages-setup ## build them twice, and compare the bytes (root)
	$(BIN)/python -m tools.packages --check $(ONLY)

lock: venv ## what the package of ovs-hotswap has of other Python packages, from setup.cfg: newest versions, and their SHA-256
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action ignore -e '.[lock]'
	$(BIN)/python -m tools.packages.lock

man: venv ## the manual page ovs-hotswap(8), in build/man
	$(BIN)/python -m tools.manpage build/man/ovs-hotswap.8

fuzz: venv ## a million inputs for everything that reads what a QEMU says, and 2 000 lives of a random front end
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action ignore -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz.session -runs=1000000 -max_len=2048 -print_final_stats=1 tests/fuzz/corpus
	OVS_HOTSWAP_EXAMPLES=2000 $(BIN)/python -m pytest -q tests/unit/test_front_end.py

lint: venv ## ruff and mypy, and each tree's checkpatch on the patches that are for it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tools.checkpatch

clean: ## remove .venv and all caches, put the huge pages back as they were
	@tools/clean.sh
