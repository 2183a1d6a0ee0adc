# SPDX-License-Identifier: Apache-2.0
#
# make demo    a 3-node Kubernetes on this machine, networked by weft, with a tour
# make test    gofmt, vet, staticcheck; unit, kernel and lab tests
# make build   bin/weft, bin/weft-lab and what they carry along
# make help    everything else

SHELL := /bin/bash
BIN   := $(CURDIR)/bin

.DEFAULT_GOAL := build
.PHONY: help build demo test check unit lab-test conformance differ-dns bench-services bench-dns bench-policy bench-gateway clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

build: ## bin/weft, bin/weft-lab and what they carry along (the first build takes minutes)
	@build/go-build "weft" . -o $(BIN)/ ./cmd/weft ./cmd/weft-cni
	@build/go-build "the lab's pod programs" lab -o $(BIN)/ ./cmd/weft-shim ./cmd/echo
	@build/go-build "the lab, with a Kubernetes inside" lab -o $(BIN)/ ./cmd/weft-lab ./cmd/weft-lab-kube

demo: build ## bring up the lab, install weft, apply examples/shop and tour it (DEMO=once: leave after the tour)
	@examples/shop/tour

test: check unit lab-test ## all of it

check: ## gofmt, go vet, staticcheck
	@build/check

unit: ## unit and kernel tests, with the race detector
	@build/unit-test

lab-test: build ## whole features on a real Kubernetes
	@build/lab-test

conformance: build ## the upstream suites of Gateway API and network-policy-api, unmodified; reports in docs/conformance
	@build/conformance-gateway
	@build/conformance-netpol

differ-dns: ## what weft and CoreDNS answer about generated clusters; a difference without a reason is a failure
	@command -v knotd >/dev/null || apt-get install -y knot >/dev/null
	@bench/dns/run -differ 8

bench-dns: ## weft, CoreDNS and Knot: CPU per query, memory, changes
	apt-get install -y knot dnsperf >/dev/null
	bench/dns/run

bench-services: ## weft and kube-proxy: full syncs, changes, connections
	apt-get install -y nftables iptables >/dev/null
	cd bench/services && go run .

bench-policy: ## weft's policies and kube-router's beside none: connections, throughput, changes
	apt-get install -y iptables ipset >/dev/null
	bench/policy/run

bench-gateway: ## weft gateway beside nginx and HAProxy: CPU per request
	apt-get install -y nginx-light libnginx-mod-stream haproxy wrk nghttp2-client >/dev/null
	bench/gateway/run

clean: ## remove what was built
	rm -rf bin
