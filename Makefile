# One page: what there is to run. Logic lives in Go (cmd/internal/testrun).

BINARIES := tulle tulle-policy-server tulle-celld tulle-tlsproxy tulle-cni tulle-netavark tulle-garden tulle-bench
GO       ?= go

.PHONY: help build demo test race fuzz soak bench lint clean

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## the binaries, into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ $(addprefix ./cmd/,$(BINARIES))

demo: build ## two cells, six containers, policies, nobody is root (ARGS="--keep" leaves it running)
	@bin/tulle demo $(ARGS)

test: ## all tests, then each fuzz target for 5 s; as root it opens /dev/net/tun for the run
	@$(GO) run ./cmd/internal/testrun test

race: ## all tests under the race detector (needs a C compiler; as root it installs one)
	@$(GO) run ./cmd/internal/testrun race

fuzz: ## each fuzz target for a minute (FUZZTIME=10m for longer)
	@$(GO) run ./cmd/internal/testrun fuzz -fuzztime=$(or $(FUZZTIME),1m)

soak: ## an hour of mixed traffic with policy changes, then nothing may be left (SOAK=10m for less); a minute of it is in test
	@TULLE_SOAK=$(or $(SOAK),1h) $(GO) test -count=1 -timeout 48h -run '^TestSoak$$' -v ./overlay

bench: build ## Tulle beside what it replaces (ARGS="--scenario rr", ARGS=list), as root
	@bin/tulle-bench $(ARGS)

lint: ## gofmt, vet, staticcheck, go.mod as tidy would have it, layers and package comments
	@$(GO) run ./cmd/internal/testrun lint

clean: ## what the targets above made
	rm -rf bin
