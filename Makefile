# make run      install what is missing, start Roost, run a first job
# make setup    the installing part of it; leaves the program at .venv/bin/roost
# make test     checks and the whole suite        make test-fast   what needs no running Roost
# make check    formatting, lint, types           make bench       measurements
# make wheel    a package for pipx, in dist/
# make test-machines   the same from nothing, on emulated Debian machines; MACHINES="bookworm trixie noble"

SHELL := /bin/sh
.DEFAULT_GOAL := help
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
ROOST := .venv/bin/roost
GUEST := src/roost/node/guest
# Two for each processor, since most tests wait; each has up to three instances of the 16 that a machine holds
WORKERS := $(shell n=$$(($$(nproc) * 2)); echo $$((n < 5 ? n : 5)))
# What `roost up` is started with, for example: make run UP="--listen 127.0.0.1:9000"
UP :=
# What pytest is started with, for example: make test PYTEST="tests/api -k logs"
PYTEST :=
# --again: what failed is tried once more, alone
AGAIN :=
# Which distributions `make test-machines` boots, and options of `python -m tests.machines`
MACHINES := bookworm trixie

.PHONY: help setup packages user image run test test-packages test-fast test-machines check bench wheel clean

help:
	@sed -n 's/^# make/make/p' Makefile

setup: packages user .venv/synced $(GUEST)/build/init image

packages:
	@scripts/system-packages

# The control plane's user: no login, no home, no privileges.
user: packages
	@id roost >/dev/null 2>&1 || $(SUDO) adduser --system --group --no-create-home --home /nonexistent roost

.venv/synced: uv.lock pyproject.toml scripts/environment | packages
	@scripts/environment
	@touch $@

# What the tests and checks need besides, in the same place; it stays there when the other is made anew.
.venv/developed: .venv/synced
	@scripts/environment --develop
	@touch $@

$(GUEST)/build/init: $(wildcard $(GUEST)/*.c $(GUEST)/*.h $(GUEST)/build.py) .venv/synced
	@echo "Building the guest init"
	@.venv/bin/python -m roost.node.guest.build
	@touch $@

image: .venv/synced packages
	@$(SUDO) $(ROOST) node-image ensure standard

run: setup
	@exec $(ROOST) up --hello $(UP)

test-packages:
	@scripts/system-packages --test

# The suite starts real sandboxes, which takes root.
test: setup test-packages .venv/developed check
	$(SUDO) .venv/bin/python -m tests.supervised $(AGAIN) -n $(WORKERS) --dist worksteal $(PYTEST)

test-fast: setup .venv/developed
	$(SUDO) .venv/bin/python -m tests.supervised -q -n 2 -m "not e2e and not slow" $(PYTEST)

# Each machine follows README from a clean clone of HEAD.
test-machines: setup
	@scripts/system-packages --machines
	@$(SUDO) .venv/bin/python -m tests.machines $(MACHINES)

check: .venv/developed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright

bench: setup test-packages .venv/developed
	@for file in bench/[a-z]*.py; do echo "== $$file"; $(SUDO) .venv/bin/python "$$file" || exit 1; done

# Of this machine's architecture: the programs that run in guests are in it.
wheel: packages .venv/synced
	@PATH=".tools/bin:$$PATH" uv build --wheel --out-dir dist

clean:
	rm -rf dist .venv .tools $(GUEST)/build .pytest_cache .ruff_cache .hypothesis
