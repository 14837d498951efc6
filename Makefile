# One file to set up, try, check and test. Needs Python 3.11, pip and git; everything else goes into .venv.
#   make demo     install, then the whole road on real data (needs no network after the installation)
#   make test     install, then format, lint, types and tests
#   make quick    the same without the tests that take more than about 20 seconds
#   make long     minutes each: real rounds of the benchmarks, the whole demo as a job, every dashboard's queries
#   make chaos    faults of all kinds over the whole pipeline
# On a machine with a GPU:  UV_TORCH_BACKEND=auto make install   (and =cpu where no CPU wheel of torch is at hand)

PYTHON ?= python3
BIN := .venv/bin
LOCK := platform/requirements.lock
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Ray starts many processes; each would compile torch and the rest again, half of its start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install system demo test quick long chaos fuzz audit sbom check format lock clean

install: .venv/installed

.venv/installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info[:2] >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r $(LOCK)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

# Debian's packages that some tests need, as root: a browser, Prometheus, a wrong clock.
system:
	for program in chromium chromedriver promtool faketime; do command -v $$program > /dev/null || missing=1; done; \
	test -z "$$missing" || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium chromium-driver prometheus faketime; }

demo: install
	$(BIN)/isoformer demo $(ARGS)

test: check
	$(BIN)/python -m pytest -m "not chaos and not long" -n 2 --dist worksteal $(ARGS)

quick: check
	$(BIN)/python -m pytest -m "not chaos and not long and not slow" -n 2 --dist worksteal $(ARGS)

# Minutes each, one after another.
long: install
	$(BIN)/python -m pytest -m long $(ARGS)

chaos: install
	$(BIN)/python -m pytest -m chaos $(ARGS)

# Every door that bytes of a user come through, guided by coverage: half an hour.
fuzz: install
	$(BIN)/python tests/fuzz/campaign.py --inputs 2400 --seconds 50 --report tests/fuzz/campaign.json

# Known vulnerabilities of the lock (3: the service could not be asked), and what it stands on as CycloneDX.
audit: install
	$(BIN)/python platform/tools/supply_chain.py audit

sbom: install
	$(BIN)/python platform/tools/supply_chain.py sbom build/sbom.json

check: install
	$(BIN)/ruff format --check platform jobs tests dashboards
	$(BIN)/ruff check platform jobs tests dashboards
	$(BIN)/mypy

format: install
	$(BIN)/ruff format platform jobs tests dashboards
	$(BIN)/ruff check --fix platform jobs tests dashboards

# Pin the newest versions that pyproject.toml allows. The local-version tag of a CPU wheel is taken off, so that the
# same lock serves machines with and without a GPU.
lock: install
	$(BIN)/uv pip compile --quiet --python-version 3.11 --extra benchmark --extra databases --extra dev --extra dashboards --no-emit-find-links \
		--no-emit-index-url --no-annotate --no-header pyproject.toml -o $(LOCK)
	sed -i -e '/^cuda-/d' -e '/^nvidia-/d' -e '/^triton==/d' -e 's/^\(torch==[0-9.]*\)+cpu/\1/' $(LOCK)

clean:
	rm -rf .venv demo-output .mypy_cache .ruff_cache .hypothesis
