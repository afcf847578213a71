# polyproc: build, test, measure. `make help` lists the targets.
#
# What is needed: Go (see go.mod), gcc, make, Python 3.9 or later with venv. Everything else that a target needs is fetched
# into build/, which may be deleted at any time.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

ifeq ($(origin CC),default)
CC := gcc
endif
GO ?= go
PYTHON ?= python3
# Interpreters that `make test-python` runs the quick suite on, besides PYTHON.
PYTHONS ?= $(shell tests/tools/pythons 3.9 3.13)
PREFIX ?= /usr/local
DESTDIR ?=
MINUTES ?= 1
# The time that each random torture test runs for.
TORTURE_SECONDS ?= 20

# Python as users have it, whatever the environment says: with bytecode files (start-up), and lines written in one piece.
unexport PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE

VERSION := $(shell sed -n 's/^\#define PP_VERSION "\(.*\)"/\1/p' include/polyproc.h)
PACKAGE := bindings/python/src/polyproc
VENV := build/venv
VENV_PYTHON := $(VENV)/bin/python
LIBS := build/libpolyproc.so build/libpolyproc-engine.so
COPIES := $(PACKAGE)/libpolyproc.so $(PACKAGE)/libpolyproc-engine.so
# CGO_ENABLED=0 is how the packages below capi/ are imported; these platforms must at least compile.
CROSS := darwin/amd64 darwin/arm64 freebsd/amd64 freebsd/arm64 windows/amd64 windows/arm64 linux/arm64
SHELLS := .ci/run tests/tools/pythons tests/bench/run

CFLAGS ?= -O3 -g
FRONT_FLAGS := -std=gnu11 -fPIC -fvisibility=hidden -Wall -Wextra -Iinclude -pthread
FRONT_LINK := -shared -Wl,-soname,libpolyproc.so -Wl,-z,nodelete -Wl,--version-script=capi/front/polyproc.map -Wl,--build-id -Wl,-z,defs \
	-pthread -ldl
ENGINE_LINK := -Wl,--wrap=pthread_create -Wl,--version-script=$(CURDIR)/capi/engine.map -Wl,-soname,libpolyproc-engine.so

FRONT_SOURCES := $(wildcard capi/front/*.c)
FRONT_HEADERS := $(wildcard capi/front/*.h include/*.h)
# The Go runtime ends a process whose program has closed the descriptors of the runtime's poller. In the engine it goes on, so that the
# library can return an error: see pp__engine_intact. A Go release that has other words there is built as it is.
NETPOLL = $(shell $(GO) env GOROOT)/src/runtime/netpoll_epoll.go
ENGINE_SOURCES := go.mod go.sum $(wildcard capi/*.c capi/*.h) \
	$(shell find capi core shm -name '*.go' -not -name '*_test.go' -o -name '*.s')

# ---- build -----------------------------------------------------------------------------------------------------------

.PHONY: generate help build demo test test-go test-c test-python test-interop check bench torture sweep stress conformance interop install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: $(LIBS) $(COPIES) ## the library, in build/ and in the Python package

# A library is put in its place by a rename: programs that have the old one mapped keep it whole.
build/libpolyproc.so: $(FRONT_SOURCES) $(FRONT_HEADERS) capi/front/polyproc.map Makefile
	@mkdir -p build
	$(CC) $(CFLAGS) $(FRONT_FLAGS) -o $@.new $(FRONT_SOURCES) $(FRONT_LINK)
	@mv -f $@.new $@

# The header that cgo generates is not ours (see include/polyproc.h) and does not stay.
build/libpolyproc-engine.so: $(ENGINE_SOURCES) $(FRONT_HEADERS) capi/engine.map Makefile
	@mkdir -p build/engine build/runtime
	@sed -e '/println("runtime: \(epollwait on fd\|netpollBreak write failed\)/d' \
		-e 's|throw("runtime: netpoll failed")|if delay != 0 { usleep(10000) }; return gList{}, 0|' \
		-e 's|throw("runtime: netpollBreak write failed")|netpollWakeSig.Store(0); return|' $(NETPOLL) > build/runtime/netpoll_epoll.patched
	@if [ "$$(diff $(NETPOLL) build/runtime/netpoll_epoll.patched | grep -c '^[<>]')" = 6 ]; \
		then echo '{"Replace": {"$(NETPOLL)": "$(CURDIR)/build/runtime/netpoll_epoll.patched"}}'; \
		else echo 'make: the Go runtime is another: closefrom() with an open pool aborts the program' >&2; echo '{}'; fi > build/runtime/overlay.json
	CGO_ENABLED=1 CC="$(CC)" $(GO) build -overlay build/runtime/overlay.json -buildmode=c-shared -trimpath -buildvcs=false \
		-ldflags "-s -w -extldflags '$(ENGINE_LINK)'" -o build/engine/libpolyproc-engine.so ./capi
	@rm -f build/engine/libpolyproc-engine.h
	@mv -f build/engine/libpolyproc-engine.so $@ && rmdir build/engine

$(PACKAGE)/%.so: build/%.so
	@mkdir -p $(@D)
	@cp $< $@.new && mv -f $@.new $@

generate: ## the C of the steps that are written in Go (core/internal/cgen)
	$(GO) generate ./shm/... ./core/...

# ---- what tests need ----------------------------------------------------------------------------------------------------

$(VENV)/.made: tests/requirements.txt tests/requirements-run.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 9)' || \
		{ echo 'make: PYTHON=$(PYTHON) must be Python 3.9 or later with venv (Debian: apt-get install python3-venv)' >&2; exit 1; }
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	@$(VENV_PYTHON) -m pip install -q --disable-pip-version-check -r tests/requirements.txt
	@touch $@

build/staticcheck: tests/tools/go.mod tests/tools/go.sum
	@mkdir -p build
	@cd tests/tools && $(GO) build -o ../../build/staticcheck honnef.co/go/tools/cmd/staticcheck

# ---- demo and tests --------------------------------------------------------------------------------------------------------

demo: build ## the same job on real files, from Python, C and Go
	@echo '== Python: every module of the standard library, parsed'
	@PYTHONPATH=bindings/python/src $(PYTHON) tests/demo/demo.py
	@echo && echo '== C: every header under /usr/include, hashed'
	@mkdir -p build/demo
	@$(CC) -std=c11 -O2 -Wall -Wextra -Wpedantic -Werror -Iinclude -o build/demo/demo-c tests/demo/demo.c \
		-Lbuild -lpolyproc -Wl,-rpath,$(CURDIR)/build
	@build/demo/demo-c
	@echo && echo '== Go: every file of the Go distribution, parsed'
	@$(GO) build -o build/demo/demo-go ./tests/demo/go
	@build/demo/demo-go

test: test-go test-c test-python test-interop ## everything, about fifteen minutes on two cores
	@$(MAKE) --no-print-directory demo

test-go: build ## Go packages, with the race detector where it applies, and what tests/ asks of the library
	$(GO) vet ./...
	CGO_ENABLED=0 POLYPROC_TORTURE_SECONDS=$(TORTURE_SECONDS) $(GO) test -count=1 -timeout 10m ./shm/... ./core/...
	POLYPROC_TORTURE_SECONDS=2 $(GO) test -race -short -count=1 -timeout 10m ./shm/... ./core/...
	$(GO) test -count=1 -timeout 10m ./capi/... ./tests/abi ./tests/layering ./tests/install ./tests/mixed ./tests/readme

# The kill sweeps, which wait more than they compute, run together.
test-c: build ## C programs against the header and the library
	POLYPROC_TORTURE_SECONDS=$(TORTURE_SECONDS) $(GO) test -count=1 -timeout 15m -parallel 5 -v ./tests/cdriver

test-python: build $(VENV)/.made ## the Python package, on PYTHON and, in short, on PYTHONS
	$(VENV_PYTHON) tests/python/torture_pool.py --seconds $(TORTURE_SECONDS)
	$(VENV_PYTHON) tests/python/torture_queue.py --seconds $$(( $(TORTURE_SECONDS) / 2 ))
	@$(MAKE) --no-print-directory -j2 --output-sync=target test-python-package test-python-programs test-python-short

# Two at a time: they wait for starts of processes more than they compute. What each says comes at its end.
.PHONY: test-python-package test-python-programs test-python-short
PYTEST := -m pytest -q -p no:cacheprovider

test-python-package: build $(VENV)/.made
	PYTHONPATH=bindings/python/src $(VENV_PYTHON) $(PYTEST) tests/python

test-python-programs: build $(VENV)/.made
	PYTHONPATH=bindings/python/src $(VENV_PYTHON) $(PYTEST) tests/guide tests/fork tests/typing

test-python-short: build
	@for python in $(PYTHONS); do \
		venv=build/venv-$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		if [ ! -e $$venv/.made ] || [ tests/requirements-run.txt -nt $$venv/.made ]; then \
			rm -rf $$venv; $$python -m venv $$venv; \
			$$venv/bin/python -m pip install -q --disable-pip-version-check -r tests/requirements-run.txt; \
			touch $$venv/.made; \
		fi; \
		echo "== $$($$venv/bin/python --version)"; \
		PYTHONPATH=bindings/python/src $$venv/bin/python $(PYTEST) -m 'not slow' tests/python tests/fork; \
	done

# What is short and depends on nothing but PyPI; `make interop` runs all suites.
test-interop: build ## programs that other projects make: frozen by PyInstaller
	@$(PYTHON) tests/interop/run --only pyinstaller

torture: build $(VENV)/.made ## kill workers at random, for MINUTES (1) in each language
	CGO_ENABLED=0 POLYPROC_TORTURE_SECONDS=$$(( $(MINUTES) * 60 )) \
		$(GO) test -count=1 -v -timeout $$(( $(MINUTES) * 20 + 20 ))m -run Torture ./shm/... ./core/...
	POLYPROC_TORTURE_SECONDS=$$(( $(MINUTES) * 60 )) $(GO) test -count=1 -v -timeout $$(( $(MINUTES) * 20 + 20 ))m \
		-run 'TestC/torture' ./tests/cdriver
	$(VENV_PYTHON) tests/python/torture_pool.py --seconds $$(( $(MINUTES) * 60 ))
	$(VENV_PYTHON) tests/python/torture_queue.py --seconds $$(( $(MINUTES) * 60 ))

sweep: build ## SIGKILL after each instruction of what works on shared memory; `make test` tries some
	POLYPROC_SWEEP=all POLYPROC_TORTURE_SECONDS=14000 $(GO) test -count=1 -v -timeout 4h -parallel 5 -run 'TestC/killsweep' ./tests/cdriver

stress: build ## fork FORKS (750) times with each Python there is, four times as often in C, while threads are inside calls
	POLYPROC_FORKS=$$(( $(or $(FORKS),750) * 4 )) POLYPROC_TORTURE_SECONDS=$$(( $(or $(FORKS),750) * 4 )) \
		$(GO) test -count=1 -v -timeout 4h -run 'TestC/^fork_stress$$' ./tests/cdriver
	@for python in $$(tests/tools/pythons 3.9 3.11 3.12 3.13); do $$python tests/fork/stress.py --forks $(or $(FORKS),750); done

RESULT = build/conformance-$(or $(SUITE),core)-$(or $(METHOD),spawn).json
conformance: build ## CPython's own multiprocessing tests (METHOD=spawn, SUITE=core or main, see tests/conformance/README.md)
	@tests/conformance/run_cpython_suite --module polyproc --path bindings/python/src --lenient \
		--method $(or $(METHOD),spawn) --suite $(or $(SUITE),core) \
		--python $$($(PYTHON) -c 'import sys; print(sys.executable)') --json $(RESULT) $(CONFORMANCE_FLAGS)
	@$(PYTHON) tests/conformance/waiting_tool.py --brief $(RESULT)

interop: build ## other projects' suites on polyproc: pebble, mpire, joblib, scikit-learn, torch, PyInstaller (SUITES=...)
	@$(PYTHON) tests/interop/run $(if $(SUITES),--only $(SUITES)) $(INTEROP_FLAGS)

bench: build ## side by side with the alternatives: a table and build/bench.json
	@tests/bench/run $(BENCH_FLAGS)

# ---- check --------------------------------------------------------------------------------------------------------------------

CHECKS := check-generated check-go check-cross check-c check-contract check-python check-shell check-tree
.PHONY: $(CHECKS)

check: $(CHECKS) ## formatting, linters, other platforms, layering, symbols, clean tree (-k: all, whatever fails)

check-go: build build/staticcheck
	@echo '== gofmt'; out=$$(gofmt -l capi core shm tests); [ -z "$$out" ] || { echo "$$out"; exit 1; }
	@echo '== go vet'; $(GO) vet ./...; cd tests/bench/go && $(GO) vet ./...
	@echo '== staticcheck'; build/staticcheck ./...

check-generated:
	@echo '== generated C is up to date'; CGEN_CHECK=1 $(GO) generate ./shm/... ./core/...

check-cross:
	@for target in $(CROSS); do echo "== $$target"; \
		CGO_ENABLED=0 GOOS=$${target%/*} GOARCH=$${target#*/} $(GO) build ./shm/... ./core/...; \
		CGO_ENABLED=0 GOOS=$${target%/*} GOARCH=$${target#*/} $(GO) vet ./shm/... ./core/...; \
	done

check-c:
	@echo '== C, warnings as errors'
	@$(CC) $(FRONT_FLAGS) -Wpedantic -Werror -fsyntax-only $(FRONT_SOURCES)
	@for f in tests/bench/*.c tests/demo/*.c bindings/c/examples/*.c; do \
		$(CC) -std=c11 -Wall -Wextra -Wpedantic -Werror -fopenmp -Iinclude -fsyntax-only $$f; done

check-contract: build
	@echo '== layering, exported symbols, header, layout'; $(GO) test -count=1 ./tests/layering ./tests/abi

check-python: $(VENV)/.made
	@echo '== ruff'; $(VENV)/bin/ruff check bindings/python tests
	@echo '== mypy'; cd bindings/python && ../../$(VENV)/bin/mypy --strict src/polyproc

check-shell:
	@echo '== shell'; for f in $(SHELLS); do bash -n $$f; done

# After the others: what a build or a test leaves in the tree is seen here.
check-tree: $(filter-out check-tree,$(CHECKS))
	@echo '== clean tree'; out=$$(git status --porcelain); [ -z "$$out" ] || \
		{ echo "not committed, or left by a build or a test:"; echo "$$out"; exit 1; }

# ---- install -------------------------------------------------------------------------------------------------------------------

install: build ## into PREFIX (/usr/local), under DESTDIR
	install -d $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/lib/cmake/polyproc
	install -m 644 include/polyproc.h $(DESTDIR)$(PREFIX)/include
	install -m 755 $(LIBS) $(DESTDIR)$(PREFIX)/lib
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|' bindings/c/polyproc.pc.in \
		> $(DESTDIR)$(PREFIX)/lib/pkgconfig/polyproc.pc
	install -m 644 bindings/c/polyproc-config.cmake $(DESTDIR)$(PREFIX)/lib/cmake/polyproc
	sed -e 's|@VERSION@|$(VERSION)|' bindings/c/polyproc-config-version.cmake.in \
		> $(DESTDIR)$(PREFIX)/lib/cmake/polyproc/polyproc-config-version.cmake

clean: ## remove what was built
	rm -rf build $(COPIES)
