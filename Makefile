# Every target that needs .venv sets it up by ./run, which needs neither make nor uv.
.PHONY: run test coverage lint bench lock version image container-check systemd-check clean
.DEFAULT_GOAL := test

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' warmproxy/__init__.py)
BIN := .venv/bin
BENCH := peers
LOCKS := requirements.lock requirements-dev.lock

# ARGS goes to warmproxy, to pytest or to the benchmark: make run ARGS='--warm https://api.example.com=4'
# BENCH chooses another benchmark: make bench BENCH=growth ARGS=--quick
run:
	./run $(ARGS)

test:
	./run test $(ARGS)

# Every branch of the floors below the sockets is taken by their own tests. Tracing slows them down,
# so each may take longer than in a normal run.
coverage:
	./run setup
	$(BIN)/coverage run -m pytest --timeout 300 tests/pool tests/policy tests/protocol $(ARGS)
	$(BIN)/coverage report -m --fail-under=100 \
		--include 'warmproxy/policy/*,warmproxy/pool/*,warmproxy/protocol/*'

# A lock with an address in it would bind everybody to the index of whoever made it.
lint:
	@! grep -n '://' $(LOCKS)
	./run setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

bench:
	./run setup
	$(BIN)/python benchmarks/$(BENCH).py $(ARGS)

# Keeps the versions that are locked where pyproject.toml still allows them; `make lock
# UPGRADE=--upgrade` takes the newest. uv lives in a place of its own: nothing else needs it.
UV_COMPILE := .venv-lock/bin/uv pip compile --quiet --universal --generate-hashes --no-header \
	--no-annotate $(UPGRADE) pyproject.toml

lock:
	python3 -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9'
	$(UV_COMPILE) -o requirements.lock
	$(UV_COMPILE) --group dev -c requirements.lock -o requirements-dev.lock
	@! grep -n '://' $(LOCKS)

version:
	@echo $(VERSION)

image:
	docker build --build-arg VERSION=$(VERSION) -t warmproxy:$(VERSION) .

# systemd as the first process of a container; ENGINE=docker needs the OPTIONS that the script names
ENGINE ?= podman
systemd-check:
	$(ENGINE) build -f .ci/systemd/Dockerfile -t warmproxy-systemd .
	ENGINE="$(ENGINE)" .ci/systemd-check warmproxy-systemd

container-check: image
	.ci/container-check warmproxy:$(VERSION)

clean:
	rm -rf .venv .venv-lock build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +
