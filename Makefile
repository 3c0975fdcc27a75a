# make demo      export, verify, detect and benchmark on the repository's own infrared frames -> build/demo/
# make test      the test suite, under 15 minutes on two cores
# make test-all  the slow tests too
# make build     .venv and the native libraries alone -> runtimes/lib/
# make figures DATA=... CLIPS=...   the figures of BiisNet in README (needs the public data) -> build/figures/
# make peers     our engines and others on the same networks, each in an environment of its own -> build/peers/
# make arm       tests and instruction counts on emulated ARM cores (Debian; packages: docs/arm.md) -> build/arm/
# make lint      ruff
# make clean     removes build/, .venv and the native libraries
# Each sets up .venv by itself and builds the native libraries; python3 (3.11 or newer) and make are all they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
SOURCES := setup.cfg setup.py pyproject.toml constraints.txt \
    $(shell find runtimes/native -type f \( -name '*.[ch]' -o -name '*.map' -o -name CMakeLists.txt \))

# Where the machine has no C compiler, zig's serves: setup.py writes this wrapper, and the tests compile with it too.
ifeq ($(filter environment command,$(firstword $(origin CC)))$(shell command -v cc || command -v gcc || command -v clang),)
ZIG := ziglang
TEST_ENV := CC="$(CURDIR)/build/zig-cc"
endif

# Two processes; which tests stay together tests/conftest.py says.
SIDE_BY_SIDE := -n 2

.PHONY: demo test test-all figures peers arm build lint clean

demo: $(VENV)/.ready
	$(BIN)/irstd-edge export biisnet --to onnx,tflite,portable --out $(DEMO)/bundle
	$(BIN)/irstd-edge export biisnet-float --untrained --to onnx,tflite --out $(DEMO)/twin
	$(BIN)/irstd-edge verify $(DEMO)/bundle --images samples/frames
	$(BIN)/irstd-edge detect $(DEMO)/bundle samples/frames --out $(DEMO)/overlays --sheet $(DEMO)/detections.png
	$(BIN)/irstd-edge benchmark $(DEMO)/bundle --twin $(DEMO)/twin --images samples/frames --preset quick \
	    --json $(DEMO)/report.json --html $(DEMO)/report.html
	@echo "open $(DEMO)/report.html"

test: $(VENV)/.ready
	$(TEST_ENV) $(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-all: $(VENV)/.ready
	$(TEST_ENV) $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "slow or not slow"

build: $(VENV)/.ready

# DATA is the folder that holds NUAA-SIRST, CLIPS one of X.mp4 with boxes X.csv.
figures: $(VENV)/.ready
	test -n "$(DATA)" && test -n "$(CLIPS)"
	$(BIN)/irstd-edge export biisnet --to onnx,tflite,portable --out build/figures/bundle
	$(BIN)/irstd-edge export biisnet-float --untrained --to onnx,tflite --out build/figures/twin
	$(BIN)/irstd-edge evaluate build/figures/bundle --clips $(CLIPS) --json build/figures/clips.json
	$(BIN)/irstd-edge verify build/figures/bundle --images $(CLIPS) --every 30 --dataset NUAA-SIRST --root $(DATA) \
	    --json build/figures/verify.json
	$(BIN)/irstd-edge benchmark build/figures/bundle --twin build/figures/twin --images samples/frames --preset quick \
	    --out build/figures

# Engines that cannot be installed or run are told in the result.
peers: $(VENV)/.ready
	-$(BIN)/cmake -S runtimes/native -B build/native
	-$(BIN)/cmake --build build/native --target peaks
	$(TEST_ENV) $(BIN)/python -m irstd_edge.benchmarks.peers $(PEERS)

arm: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow tests/arm
	$(BIN)/python -m irstd_edge.benchmarks.arm $(ARM)

lint: $(VENV)/.ready
	$(BIN)/ruff check .

# One install for everything: a change of the native sources rebuilds and re-installs in place.
$(VENV)/.ready: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]" $(ZIG)
	touch $@

clean:
	rm -rf build $(VENV) runtimes/lib *.egg-info
