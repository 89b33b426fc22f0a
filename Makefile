# Two commands for a fresh Debian machine with Rust: `make demo` and `make test`.

CARGO ?= cargo

# The cargo plugins of scripts/install-tools.sh come before others of the same name.
export PATH := $(CURDIR)/target/tools/bin:$(PATH)

# ISA-L decodes gzip on x86-64. Cargo's default is off, because it needs nasm and autotools.
FEATURES = --features isal

# What the tests of container images run: the larder of all tests, with the C library linked in. It resolves host names by
# itself, from /etc/hosts and DNS; that needs glibc 2.34 or newer (Debian 12).
STATIC = -C target-feature=+crt-static

.PHONY: help deps tools check-isal build dist deb image tarball static-dist static sbom reproducible demo test interop lint docs advisories bench instructions fuzz msrv

help:
	@echo "make demo    build a cache from a real registry and start a container from the sealed volume"
	@echo "make test    run every test; installs the packages that they need (root)"
	@echo "make build   target/release/larder"
	@echo "make dist    target/dist/larder: the program that is shipped; the same bytes in any directory"
	@echo "make deb     target/deb: a Debian package; needs debhelper"
	@echo "make image   target/image: a container image of larder, as an OCI layout"
	@echo "make tarball target/tarball: an archive of the static program with units, man pages and more, and SHA256SUMS"
	@echo "make lint    formatting, clippy, rustdoc, prose, shellcheck, generated code, dependencies"
	@echo "make docs    target/book: the documentation as a website; needs mdbook"
	@echo "make fuzz    build the fuzz targets and run each for 20 s on its corpus"
	@echo "make msrv    check with the oldest supported Rust"
	@echo "make interop run attach, upgrade, detach, ... with each installed container runtime (root); prints a table"
	@echo "make sbom    target/sbom/larder.cdx.json: the packages that are linked into target/dist/larder"
	@echo "make reproducible   build target/dist/larder twice, in two directories, and compare"
	@echo "make advisories     check Cargo.lock for known vulnerabilities; needs the network"
	@echo "make bench   run the benchmarks"
	@echo "make instructions   count the instructions that a small layer takes"

deps:
	@scripts/install-deps.sh

tools:
	@scripts/install-tools.sh

check-isal:
	@scripts/check-isal.sh

build: check-isal
	$(CARGO) build --package larder --bin larder --release --locked $(FEATURES)

dist: check-isal
	scripts/release-env.sh $(CARGO) build --package larder --bin larder --profile dist --locked $(FEATURES)

deb: dist
	scripts/deb.sh

# The packages in the CycloneDX format. The file is part of a release.
sbom: tools
	scripts/sbom.sh target/sbom

# PROGRAM names a program to compare with instead of target/dist/larder, for example a published one.
reproducible:
	scripts/reproducible.sh $(PROGRAM)

# The image has the time of the commit: the same sources, compiler and CA bundle give the same image. AUTHORITIES names a
# CA bundle to include instead of the one of this machine.
image tarball: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
image: REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
image: static-dist
	target/dist/larder image target/image --force $(if $(REVISION),--revision $(REVISION)) \
		$(if $(AUTHORITIES),--authorities $(AUTHORITIES))

# Needs no library of the system, so it runs on any Linux of this architecture.
tarball: static-dist
	scripts/tarball.sh

# The program that is shipped, with the C library linked in.
static-dist: check-isal
	scripts/release-env.sh $(CARGO) rustc --package larder --profile dist --locked $(FEATURES) --bin larder -- $(STATIC)

static: check-isal
	$(CARGO) rustc --package larder --features testing $(FEATURES) --locked --bin larder -- $(STATIC) -C strip=debuginfo
	cp target/debug/larder target/larder-static

demo: deps build
	scripts/demo.sh

# With LARDER_REQUIRE_ALL, a test that lacks a tool or a privilege fails instead of being ignored.
# LARDER_TEST_KUBECONFIG names a cluster to use instead of crates/fake-kubernetes, for the tests of that crate and for
# `--test it kubernetes::`; tests/it/harness/cluster.rs lists what the cluster needs.
test: deps tools static
	LARDER_REQUIRE_ALL=1 LARDER_TEST_STATIC=$(CURDIR)/target/larder-static $(CARGO) test $(FEATURES) --locked

# Tries the containerd, podman and CRI-O on PATH, and those that environment variables name: scripts/interop.sh --help.
interop: deps build
	scripts/interop.sh $(if $(ONLY),--only '$(ONLY)')

lint: tools
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	scripts/prose-lint
	scripts/shell-lint
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings
	$(CARGO) check --package larder --no-default-features --locked
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --all-features --document-private-items --locked
	$(CARGO) deny --offline --locked check bans licenses sources
	$(CARGO) machete --skip-target-dir
	scripts/containerd-api.sh --check
	$(CARGO) metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null

docs:
	mdbook build docs --dest-dir ../target/book

# Exit code 69 means that the advisory database could not be fetched.
advisories: tools
	scripts/advisories.sh

fuzz:
	scripts/fuzz.sh 20

# `rust-version` in Cargo.toml.
msrv:
	scripts/msrv.sh

bench: deps
	$(CARGO) bench --package larder $(FEATURES) --locked

# Uses the programs of `make test`, so its numbers compare only with each other.
instructions:
	$(CARGO) test --package larder $(FEATURES) --locked --bench instructions
