# Verbs for developers; `make build` after an edit to Cython or C.
.PHONY: build quick test test-all integrations bench compare counts lint docs wheels release annotate \
	asan ubsan tsan valgrind fuzz fuzz-checkpoint fuzz-arguments mutate platforms clean

PYTHON ?= python

build:
	$(PYTHON) setup.py build_ext --inplace

# Workers that take tests from each other once they have none left; `make test WORKERS=0` has none.
WORKERS ?= auto
PYTEST = $(PYTHON) -m pytest -n $(WORKERS) --dist worksteal

# After an edit, in less than a minute: one rule of each shape, the best backend, nothing that is slow
# or stands above the optimizers.
quick: build
	FASTGD_TESTS=quick $(PYTEST) -q -m "not slow" tests

# Pairs of what may be combined: each rule on each backend, in each type, with each stage.
test: build
	$(PYTEST)

# All combinations, and more examples of what is drawn at random; see tests/support/sampling.py.
test-all: build
	FASTGD_TESTS=whole $(PYTEST) --durations=25

# In the trainers of others, which the extras `…-integrations` bring along; no downloads.
integrations: build
	HF_HUB_OFFLINE=1 $(PYTHON) -m pytest integrations

bench: build
	$(PYTHON) -m pytest bench/test_bench.py bench/test_data.py --benchmark-enable --benchmark-only \
		--benchmark-group-by=group --benchmark-columns=median,iqr,rounds --benchmark-sort=mean

compare: build
	$(PYTHON) bench/compare.py

# Instructions of small steps, by valgrind; `make counts AGAINST=main` also builds and counts that.
counts: build
	$(PYTHON) bench/counts.py $(if $(AGAINST),--against $(AGAINST))

# The documentation, as build/site/index.html; the extra `docs`.  Pages run their code, warnings are errors.
docs: build
	$(PYTHON) -m sphinx -W --keep-going -q -d build/site-cache docs build/site

# A wheel for this system in dist/, repaired and tested without a compiler; the extra `release`.
wheels:
	PYTHON=$(PYTHON) .ci/wheels

# Whether version, ABI file, changelog, documentation, wheel and sdist are as a release wants them.
release: build
	$(PYTHON) .ci/release.py

lint:
	ruff check .
	ruff format --check .
	cython-lint fastgd
	mypy
	$(PYTHON) -m mypy.stubtest --mypy-config-file pyproject.toml --ignore-missing-stub \
		fastgd.kernels._engine fastgd.kernels._series fastgd.kernels._watch \
		fastgd.kernels.c_api

# Random optimizers and operations against the NumPy backend: as many as a night takes.
fuzz: build
	FASTGD_FUZZ=100000 $(PYTHON) -m pytest -q tests/core/test_stateful.py

# One change in the kernels or the engine at a time, for each of which a test must go red.
mutate: build
	$(PYTHON) tests/tools/mutate.py

# Ten minutes of fastgd.load under atheris (the extra `fuzz`); what fails is kept in crash-….
fuzz-checkpoint: build
	$(PYTHON) tests/tools/fuzz_checkpoint.py -max_total_time=600

# The same of all other arguments: constructors, steps, state dicts, functions.
fuzz-arguments: build
	$(PYTHON) tests/tools/fuzz_arguments.py -max_total_time=600

# Builds and tests for other Pythons, compilers and processors; see tests/tools/platforms/run.
PLATFORMS ?= python3.12 python3.13 clang aarch64
platforms:
	@status=0; for name in $(PLATFORMS); do \
		echo "== $$name"; tests/tools/platforms/run $$name || status=1; \
	done; exit $$status

# HTML pages beside the sources that show the C behind each line of Cython.
annotate:
	FASTGD_ANNOTATE=1 $(PYTHON) setup.py build_ext --inplace --force

# Builds under build/ for a sanitizer, and runs the tests there; see tests/tools/sanitizers/run.
asan:
	PYTHON=$(PYTHON) tests/tools/sanitizers/run address
ubsan:
	PYTHON=$(PYTHON) tests/tools/sanitizers/run undefined
tsan:
	PYTHON=$(PYTHON) tests/tools/sanitizers/run thread
valgrind:
	PYTHON=$(PYTHON) tests/tools/sanitizers/run valgrind

clean:
	rm -rf build dist *.egg-info fastgd/kernels/*.so fastgd/kernels/*.c fastgd/kernels/*.html \
		fastgd/include fastgd/kernels/c_api.pxd fastgd/kernels/_c_api.pxi \
		fastgd/kernels/loops/_*.pxi fastgd/kernels/engine/_*.pxi fastgd/optimizers/__init__.pyi \
		src_c/_powers.h src_c/_sizes.h
