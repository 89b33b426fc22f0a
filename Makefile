# Two commands for a fresh Debian machine with Rust: `make demo` and `make test`.

CARGO ?= cargo

# The cargo plugins of scripts/install-tools.sh, before others of the same name.
export PATH := $(CURDIR)/target/tools/bin:$(PATH)

.PHONY: help deps tools build image static sbom reproducible demo test interop lint advisories bench instructions

help:
	@echo "make demo    a build from a real registry, and a container started from the sealed volume"
	@echo "make test    every test; installs the packages they need (root)"
	@echo "make interop attach, upgrade, detach, ... with each container runtime at hand (root); prints a table"
	@echo "make build   target/release/larder; the same program in any directory"
	@echo "make image   target/image: a container image of larder, as an OCI layout"
	@echo "make sbom    target/sbom/larder.cdx.json: the packages that make build links"
	@echo "make reproducible   builds the release twice, in two directories, and compares"
	@echo "make lint    formatting, clippy, rustdoc, cargo-deny, cargo-machete"
	@echo "make advisories     known vulnerabilities of the packages in Cargo.lock; needs the network"
	@echo "make bench   the benchmarks"
	@echo "make instructions   how many of them a small layer takes"

deps:
	@scripts/install-deps.sh

tools:
	@scripts/install-tools.sh

build:
	scripts/release-env.sh $(CARGO) build --release --locked

# A list of the packages, in the CycloneDX format. It is part of a release.
sbom: tools
	scripts/sbom.sh target/sbom

# PROGRAM names a program to compare with in place of target/release/larder, for example a published one.
reproducible:
	scripts/reproducible.sh $(PROGRAM)

# The C library is linked in: of a static program only the last step differs, so only the program itself is told. It finds
# names of hosts in /etc/hosts and DNS by itself; glibc 2.34 or newer (Debian 12) is wanted for that.
STATIC = -C target-feature=+crt-static -C strip=debuginfo

# The time of the image is that of the commit: the same sources, compiler and authorities give the same image. AUTHORITIES
# names a bundle to trust in place of this machine's.
image: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
image: REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
image:
	scripts/release-env.sh $(CARGO) rustc --release --locked --bin larder -- $(STATIC)
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
test: deps tools static
	LARDER_REQUIRE_ALL=1 LARDER_TEST_STATIC=$(CURDIR)/target/larder-static $(CARGO) test --features testing --locked

# The containerd, podman and CRI-O on PATH, and those that environment variables name: scripts/interop.sh --help.
interop: deps build
	scripts/interop.sh $(if $(ONLY),--only '$(ONLY)')

lint: tools
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --all-features --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --all-features --document-private-items --locked
	$(CARGO) deny --offline --locked check bans licenses sources
	$(CARGO) machete --skip-target-dir

# Fails if the advisory database cannot be fetched.
advisories: tools
	scripts/advisories.sh

bench: deps
	$(CARGO) bench --features testing --locked

# By what `make test` has built, so the numbers are to be compared with each other only.
instructions:
	$(CARGO) test --features testing --locked --bench instructions
