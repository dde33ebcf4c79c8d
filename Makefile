# make run     environment, demo workspace, dashboard at http://127.0.0.1:8501 (TRACIN_PORT, TRACIN_WORKSPACE to change)
# make test    the same environment plus test requirements and a Chromium, then the fast tests

.PHONY: setup run check test test-all test-cluster test-load bench clean

setup:
	@scripts/setup

run:
	@scripts/run

check:
	@scripts/check

test:
	@scripts/test -m "not slow"

test-all:
	@scripts/test

test-cluster:
	@scripts/test-cluster

test-load:
	@scripts/test-load

bench:
	@scripts/bench

clean:
	@scripts/clean
