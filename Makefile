# Two commands for a fresh Debian machine with Rust: `make demo` and `make test`.

CARGO ?= cargo

.PHONY: help deps build demo test lint bench

help:
	@echo "make demo    a build from a real registry, and a container started from the sealed volume"
	@echo "make test    every test; installs the packages they need (root)"
	@echo "make build   target/release/larder"
	@echo "make lint    formatting, clippy, rustdoc, cargo-deny"
	@echo "make bench   the benchmarks"

deps:
	@scripts/install-deps.sh

build:
	$(CARGO) build --release --locked

demo: deps build
	scripts/demo.sh

# With LARDER_REQUIRE_ALL a test whose tool or privilege is missing fails instead of being skipped.
# LARDER_TEST_KUBECONFIG names a cluster in place of the one of src/testing/kubernetes, for the tests that say what an API
# server does (`--lib testing::kubernetes`) and for those of Larder in it (`--test it kubernetes::`; what the cluster needs
# is in tests/it/harness/cluster.rs).
test: deps
	LARDER_REQUIRE_ALL=1 $(CARGO) test --features testing --locked

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --all-features --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --all-features --document-private-items --locked
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --offline check bans licenses sources; \
	else \
		echo "skipped: cargo-deny is not installed"; \
	fi

bench: deps
	$(CARGO) bench --features testing --locked
