# Two commands for a fresh Debian machine with Rust: `make demo` and `make test`.

CARGO ?= cargo

.PHONY: help deps build image static demo test lint bench instructions

help:
	@echo "make demo    a build from a real registry, and a container started from the sealed volume"
	@echo "make test    every test; installs the packages they need (root)"
	@echo "make build   target/release/larder"
	@echo "make image   target/image: a container image of larder, as an OCI layout"
	@echo "make lint    formatting, clippy, rustdoc, cargo-deny"
	@echo "make bench   the benchmarks"
	@echo "make instructions   how many of them a small layer takes"

deps:
	@scripts/install-deps.sh

build:
	$(CARGO) build --release --locked

# The C library is linked in: of a static program only the last step differs, so only the program itself is told. It finds
# names of hosts in /etc/hosts and DNS by itself; glibc 2.34 or newer (Debian 12) is wanted for that.
STATIC = -C target-feature=+crt-static -C strip=debuginfo

# The time of the image is that of the commit: the same sources, compiler and authorities give the same image. AUTHORITIES
# names a bundle to trust in place of this machine's.
image: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
image: REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
image:
	$(CARGO) rustc --release --locked --bin larder -- $(STATIC)
	target/release/larder image target/image --force $(if $(REVISION),--revision $(REVISION)) \
		$(if $(AUTHORITIES),--authorities $(AUTHORITIES))

# What the tests of images put into one: the larder that all tests use, but static.
static:
	$(CARGO) rustc --features testing --locked --bin larder -- $(STATIC)
	cp target/debug/larder target/larder-static

demo: deps build
	scripts/demo.sh

# With LARDER_REQUIRE_ALL a test whose tool or privilege is missing fails instead of being skipped.
# LARDER_TEST_KUBECONFIG names a cluster in place of the one of src/testing/kubernetes, for the tests that say what an API
# server does (`--lib testing::kubernetes`) and for those of Larder in it (`--test it kubernetes::`; what the cluster needs
# is in tests/it/harness/cluster.rs).
test: deps static
	LARDER_REQUIRE_ALL=1 LARDER_TEST_STATIC=$(CURDIR)/target/larder-static $(CARGO) test --features testing --locked

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

# By what `make test` has built, so the numbers are to be compared with each other only.
instructions:
	$(CARGO) test --features testing --locked --bench instructions
