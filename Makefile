# MoE-GS Studio: thin over script/bootstrap.py, which sets everything up. `make` prints help.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-dev demo demo-static demo-moe test lint format lpips clean clean-all

PYTHON ?= python3
TORCH ?=
DEMO ?= output/demo
FORCE ?=
PYTEST ?= -n auto

BOOTSTRAP = $(PYTHON) script/bootstrap.py
# The Python that everything runs in: the active environment's, or .venv's.
RUN = "$(shell $(BOOTSTRAP) --print-python)"
# A finished demo is not trained again, an interrupted one goes on; FORCE=1 starts anew.
TRAIN_DEMO = train_emb.py -s demo/scene --configs arguments_MoDE/demo/demo.py $(AGAIN)
# Runs the training $(1); the program's own messages speak of flags, not of make.
define train
@echo '$(RUN) $(1)'
@$(RUN) $(1) || { code=$$?; [ $$code -ne 2 -o -n "$(FORCE)" ] || \
	echo "If the settings have changed since it was trained: make $@ FORCE=1" >&2; exit $$code; }
endef

AGAIN = $(if $(FORCE),--overwrite,--resume)
DEMO_MOE = --expname "$(DEMO)_moe" --configs arguments_MoDE/moe/demo.py

help:  ## this list
	@echo "MoE-GS Studio. Targets:"
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'
	@echo "Settings: PYTHON=python3.12  TORCH='pip arguments that install torch'  FORCE=1 (train again)"
	@echo "          DEMO=output/demo (the demo's run folder)  PYTEST='-k router' (for pytest; default: on all cores)"

setup:  ## environment, torch, requirements, native packages
	@$(BOOTSTRAP) --torch "$(TORCH)"

setup-dev:  ## the same and what the tests need
	@$(BOOTSTRAP) --dev --torch "$(TORCH)"

demo: setup  ## trains on the demo scene, renders the held-out camera, prints metrics
	$(call train,$(TRAIN_DEMO) --expname "$(DEMO)")
	$(RUN) render_emb.py --model_path "$(DEMO)" --skip_train --skip_existing
	@$(RUN) script/show_metrics.py "$(DEMO)"

demo-static: setup  ## the same with deformation switched off, beside the demo's numbers
	$(call train,$(TRAIN_DEMO) --expname "$(DEMO)_static" --static)
	$(RUN) render_emb.py --model_path "$(DEMO)_static" --skip_train --skip_video --skip_existing
	@if [ -d "$(DEMO)/test" ]; then set -- "$(DEMO)"; fi; \
	$(RUN) script/show_metrics.py "$$@" "$(DEMO)_static"

demo-moe: setup  ## trains three models and the router that mixes them, renders, prints metrics
	$(call train,train_moe.py experts $(DEMO_MOE) -s demo/scene $(AGAIN))
	$(call train,train_moe.py router $(DEMO_MOE) $(AGAIN))
	$(RUN) render_moe.py --model_path "$(DEMO)_moe" --skip_train --skip_video

test: setup-dev  ## sets up and runs the tests
	@$(RUN) -m pytest $(PYTEST)

lint: setup-dev  ## checks format and style
	@$(RUN) -m ruff format --check . && $(RUN) -m ruff check .

format: setup-dev  ## formats the code and mends what can be mended
	@$(RUN) -m ruff check --fix . ; $(RUN) -m ruff format .

lpips: setup  ## adds the weights of the LPIPS metric (64 MB)
	@$(BOOTSTRAP) --lpips

clean:  ## removes caches and builds, so that the next set-up builds again
	@$(BOOTSTRAP) --forget
	@rm -rf build submodules/*/build .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

clean-all: clean  ## and .venv; never output/
	@rm -rf .venv
