# Each of these sets up what it needs on a bare machine, and does nothing that is done already.

# Where this is set, as in many images for containers, each of some thousand processes compiles all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test check long compat bench faults sim fuzz-plan clean

help:   ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' Makefile

setup:  ## the virtual environment, the engine and the kernel image
	@scripts/image >/dev/null

demo:   ## the main job on real containers, told as a story
	@scripts/demo

test:   ## every tier of tests (TIERS="unit scenarios" for some)
	@scripts/test $(TIERS)

check:  ## format, lint, types, import contracts, links, generated files
	@scripts/setup
	@.venv/bin/python scripts/check

long:   ## tests with real containers that take half a minute or more each
	@scripts/test long

compat: ## the real clients of other systems against the running system, all of it
	@scripts/test compat-full

bench:  ## benchmarks beside their references, in one run
	@scripts/bench

faults: ## kill -9 at every crash point, and see that nothing is lost (SEED=, KILLS=, SECONDS=)
	@scripts/image >/dev/null
	@eval "$$(scripts/engine env)" && .venv/bin/python -m tests.faults run $(if $(SEED),--seed $(SEED)) $(if $(KILLS),--kills $(KILLS)) $(if $(SECONDS),--seconds $(SECONDS))
	@eval "$$(scripts/engine env)" && .venv/bin/python -m tests.faults.database $(if $(SEED),--seed $(SEED))
	@eval "$$(scripts/engine env)" && .venv/bin/python -m tests.faults.engine --most 20 $(if $(SEED),--seed $(SEED))

sim:    ## the simulation in virtual time, from seeds (SEEDS=, FIRST=, SECONDS=)
	@scripts/setup
	@.venv/bin/python -m tests.sim --seeds $(or $(SEEDS),2000) --first $(or $(FIRST),1) $(if $(SECONDS),--seconds $(SECONDS))

fuzz-plan: ## 100,000 generated plans, checked one by one
	@scripts/setup
	@.venv/bin/python -m tests.domain.long_plan

clean:  ## remove what the above made, the engine included
	@scripts/clean
