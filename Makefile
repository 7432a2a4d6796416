# Everything here needs Go and nothing else, but for compat, which says what it installs.

GO       ?= go
FUZZTIME ?= 10s
CRASH    ?= 300
SEED     ?= 1
RUNS     ?= 2000

.PHONY: build check test race fuzz h2spec proto compat crash sim mutants bench run cluster

build: ## the binary, and its other names
	$(GO) build -trimpath -tags grpcnotrace -o bin/kvorum ./cmd/kvorum
	ln -sf kvorum bin/etcd && ln -sf kvorum bin/etcdctl

check: bin/staticcheck ## what every commit must pass: format, vet, staticcheck, walls
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "gofmt -w these:" $$unformatted; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags invariants ./...
	bin/staticcheck ./...
	$(GO) test -count=1 .

bin/staticcheck: tools/go.mod
	$(GO) build -C tools -o ../bin/staticcheck honnef.co/go/tools/cmd/staticcheck

h2spec: ## what clients of HTTP/2 can get wrong, tried on package rpc
	$(GO) build -C tools -o ../bin/h2spec github.com/summerwind/h2spec/cmd/h2spec
	KVORUM_H2SPEC=$(CURDIR)/bin/h2spec $(GO) test -count=1 ./rpc -run TestH2spec

test:
	$(GO) test ./...

race: ## the rooms where goroutines meet
	$(GO) test -race -short -timeout 1h -tags invariants ./state/... ./replica/... ./wal ./listen ./rpc ./web ./watch ./leader ./api/... ./node ./proxy/...

fuzz: ## every fuzz target, FUZZTIME each: 30s, or 1000x for so many inputs
	@$(GO) test -list '^Fuzz' ./... | awk '/^Fuzz/ {f[n++]=$$1} /^ok/ {for (i=0;i<n;i++) print $$2, f[i]; n=0}' | \
	while read pkg target; do echo "== $$pkg $$target"; $(GO) test $$pkg -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x || exit 1; done

proto: ## the Go code of our own .proto files
	$(GO) run -C tools ./protogen $(addprefix ../,$(wildcard internal/*/*.proto))

compat: ## unmodified clients of several versions, and the answers of a real etcd
	@command -v etcdctl >/dev/null || { echo "installing Debian's etcd-client"; apt-get update -q && apt-get install -qy etcd-client; }
	@command -v etcd >/dev/null || { echo "installing Debian's etcd-server, the last that has the v2 API"; apt-get update -q && apt-get install -qy etcd-server; }
	@command -v npm >/dev/null || echo "not tested: Node's client, since there is no npm"
	@/usr/bin/python3 -c 'import grpc' 2>/dev/null || echo "not tested: Python's client: apt-get install python3-grpcio"
	@/usr/bin/python3 -c 'import etcd' 2>/dev/null || echo "not tested: Python's client of v2: apt-get install python3-etcd"
	@command -v patroni >/dev/null || echo "not tested: Patroni: apt-get install patroni postgresql"
	KVORUM_COMPAT=1 $(GO) test -count=1 ./test/compat ./ctl

crash: ## real processes, killed for a while
	KVORUM_CRASH_SECONDS=$(CRASH) $(GO) test ./test/crash -count=1 -timeout 0 -v

sim: ## whole clusters under faults, a seed each: make sim SEED=1 RUNS=2000
	$(GO) test ./test/sim -count=1 -timeout 0 -run TestSeeds -v -seed $(SEED) -runs $(RUNS)

mutants: ## mistakes made on purpose, which the general tests have to find
	$(GO) test -tags mutants ./test/sim ./internal/mutant -count=1 -timeout 0 -run 'TestMutants|TestSuites' -v

bench: ## side by side with etcd: make bench BENCH='-only put,get'
	$(GO) run ./test/bench $(BENCH)

run: build
	bin/kvorum server

cluster: build ## three members in one process, to be killed and started again
	bin/kvorum dev --nodes 3
