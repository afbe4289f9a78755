# stenocast: `make demo` shows it, `make run` runs it, `make test` proves it.
.PHONY: advisories bench cluster-demo demo drill livekit-demo run soak test fuzz setup-run setup-test setup-fuzz build models fmt lint clean

CARGO ?= cargo
BIN := target/release/stenocast
FUZZ_SECONDS ?= 20
HOURS ?= 2
DRILL := $(CARGO) test --locked --test drill -- --ignored --exact --nocapture

demo: build models ## publish bundled speech, print its captions, end by itself
	@$(BIN) demo

cluster-demo: setup-test models ## two ingest nodes, two ws nodes, NATS and Postgres: nodes die, a publisher moves, nothing is lost
	@$(CARGO) bench --locked --bench cluster_demo

livekit-demo: setup-test models ## a LiveKit room starts its own captions; three ways to know who speaks, captions back into the room
	@$(CARGO) bench --locked --bench livekit_demo

run: build models ## the long-lived server with a dev token and ready links
	@$(BIN) serve --dev

build: setup-run
	@test -x $(BIN) || echo "building stenocast: a few minutes on two cores the first time"
	@$(CARGO) build --release --locked

models: setup-run
	@scripts/models.sh

setup-run:
	@scripts/setup.sh run

setup-test:
	@scripts/setup.sh test
	@scripts/nats.sh

test: setup-test models ## formatting, lints and every test, with real components
	@scripts/test.sh

bench: models ## figures: latency with many viewers, leaks over many publishes, the recogniser's cost
	@$(CARGO) bench --locked --bench figures
	@$(CARGO) bench --locked --bench stt

setup-fuzz:
	@scripts/setup.sh fuzz

fuzz: setup-fuzz ## every fuzz target for FUZZ_SECONDS (20), no crash; see docs/FUZZING.md
	@scripts/fuzz.sh $(FUZZ_SECONDS)

drill: setup-test build ## every fault of docs/RELIABILITY.md against the release build, as a table
	@STENOCAST_BIN=$(abspath $(BIN)) DRILL_ROWS="$(ROWS)" $(DRILL) the_chosen_faults_cost_no_final_and_no_row

soak: setup-test build ## HOURS (2) of sessions that come and go under faults drawn from SEED; every count must balance
	@STENOCAST_BIN=$(abspath $(BIN)) SOAK_HOURS=$(HOURS) SOAK_SEED=$(SEED) $(DRILL) a_soak_balances

advisories: setup-test ## known vulnerabilities in what is built in; needs the internet
	@scripts/tools.sh
	@target/tools/bin/cargo-deny --locked check advisories

fmt:
	@$(CARGO) fmt --all
	@$(CARGO) fmt --manifest-path fuzz/Cargo.toml

lint:
	@$(CARGO) clippy --all-targets --locked -- -D warnings

clean:
	@$(CARGO) clean
