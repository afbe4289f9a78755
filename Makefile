# stenocast: `make demo` shows it, `make run` runs it, `make test` proves it.
.PHONY: demo run test setup-run setup-test build models fmt lint clean

CARGO ?= cargo
BIN := target/release/stenocast

demo: build models ## publish bundled speech, print its captions, end by itself
	@$(BIN) demo

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

test: setup-test models ## formatting, lints and every test, with real components
	@scripts/test.sh

fmt:
	@$(CARGO) fmt --all

lint:
	@$(CARGO) clippy --all-targets --locked -- -D warnings

clean:
	@$(CARGO) clean
