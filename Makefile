# make run    everything set up, then the whole pipeline on the bundled digits
# make test   everything set up, then the tests
# make campaign  everything set up, then every command killed 100 times and run again; an hour or two
# make docs   everything set up, then the documentation in build/site

# tests of one file share what they made, and tests/conftest.py says which files come first; each process takes up to
# 2 GB
PARALLEL = -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: run test test-all lint docs campaign setup clean

# what a user's own pip or Python settings say must not reach the environment's python; without bytecode each process
# compiles all of the code anew, and of the tests too: half of the time until the first of them runs
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE

setup:
	@tools/setup.sh

run: setup
	@.venv/bin/edgeline run $(ARGS)

test: setup
	@.venv/bin/python -m pytest $(PARALLEL) $(ARGS)

test-all: setup
	@.venv/bin/python -m pytest $(PARALLEL) -m "" $(ARGS)

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@tools/typecheck.sh

docs: setup
	@.venv/bin/python tools/docs.py

campaign: setup
	@.venv/bin/python tools/campaign.py --kills 100 $(ARGS)

clean:
	rm -rf .venv .cache .hypothesis .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
