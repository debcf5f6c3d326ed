# Two commands for a user: `make demo` and `make test`. The other targets are the steps of the latter, and benchmarks.

.DEFAULT_GOAL := help

SERVERS := scripts/servers.sh
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo test format lint doc unit bench servers

help: ## List the targets.
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## See declared pools being leased, probed and reclaimed. Needs Rust, Python 3 and make.
	@# Built together and then run as it is: `cargo run` would build what both use once more, with fewer features.
	cargo build --package redis-allocator-agent --package examples --bins
	@env="$$($(SERVERS) demo)" && eval "$$env" && exec $(TARGET)/debug/demo

test: servers format lint doc unit ## Run every check and every test, on Redis and on Valkey.

format: ## Check the formatting.
	cargo fmt --all --check

lint: ## Run clippy; warnings are errors.
	cargo clippy --workspace --all-targets -- -D warnings

doc: ## Build the API documentation; warnings are errors.
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Servers come first in `test`, so that a missing one is known before anything is built.
# The binaries are built beside the tests, which run them.
unit: ## Run all tests: unit, documentation, and end to end on real servers.
	cargo build --workspace --bins
	@env="$$($(SERVERS) test)" && eval "$$env" && set -x && cargo test --workspace --no-fail-fast

bench: ## Run the benchmarks.
	@env="$$($(SERVERS) test)" && eval "$$env" && set -x && cargo bench --workspace

servers: ## Fetch the servers that the tests run, and say which they are.
	@$(SERVERS) test
