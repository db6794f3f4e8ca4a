# One command for the book: `make report`. One for the tests: `make test`. All targets: `make help`.
#
#   SCALE   smoke | embedded | paper: the parameters in notebooks/params/SCALE.yaml
#   PARAMS  one more YAML file of parameters, read after those of the scale; its book is built beside the others
#   PYTHON  the interpreter that .venv is made with, 3.11 or newer

SCALE  ?= embedded
PARAMS ?=
PYTHON ?= python3

# A book is named by its scale, and by the extra parameters if there are any: editions do not overwrite each other.
EDITION  := $(SCALE)$(if $(PARAMS),-$(basename $(notdir $(PARAMS))))
VENV     := .venv
BIN      := $(VENV)/bin
READY    := $(VENV)/ready
EXECUTED := .cache/executed/$(EDITION)
BOOK     := _build/$(EDITION)

CODE     := $(wildcard kinemic/*.py kinemic/*.js)
SOURCES  := $(sort $(wildcard notebooks/[0-9][0-9]_*.ipynb))
CHAPTERS := $(basename $(notdir $(SOURCES)))
DONE     := $(CHAPTERS:%=$(EXECUTED)/%.ipynb)
RECORD   := $(filter %_record.ipynb,$(DONE))
SETTINGS := notebooks/params/$(SCALE).yaml $(PARAMS)
PAGES    := _config.yml _toc.yml $(wildcard book/*.md book/*.bib book/_static/* book/images/*)
RESULTS  := $(wildcard book/results/*.* book/results/*/*)

# One variable a line: `export A=1 B=2` would put all of it into A.
export OMP_NUM_THREADS ?= 2
export PYTHONHASHSEED := 0
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export IPYTHONDIR := $(CURDIR)/.cache/ipython
export JUPYTER_DATA_DIR := $(CURDIR)/.cache/jupyter
export JUPYTER_PREFER_ENV_PATH := 1
export JUPYTER_PLATFORM_DIRS := 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# A backend set by the caller would replace the notebook's own, and figures would be missing from the chapters.
unexport MPLBACKEND
# Only the paper's scale needs weights from the hub; at the others a missing file must say so at once.
ifneq ($(SCALE),paper)
export HF_HUB_OFFLINE ?= 1
endif

.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help report book chapters chapter test lint benchmarks results prior clean distclean

help:  ## this list
	@echo "make TARGET [SCALE=embedded|smoke|paper] [PARAMS=extra.yaml] [PYTHON=python3.11]"
	@awk -F ':.*## ' '/^[.a-z$$(){}A-Z]+:.*## / { sub(/\$$\(READY\)/, ".venv", $$1); printf "  %-10s %s\n", $$1, $$2 }' Makefile

report: book  ## execute the chapters that need it, build the book, name the page to open
	@echo "the book at scale $(EDITION) is built; open $(BOOK)/index.html"

# --- environment ---------------------------------------------------------------------------------------------------

$(READY): pyproject.toml constraints.txt  ## the environment, in the folder .venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes, 2.1 GB (about 7 GB where pip takes the CUDA build of torch)"
	@$(BIN)/python -m pip install -qq --progress-bar off -c constraints.txt -e ".[test,video]"
	@touch $@

.PHONY: $(VENV)
$(VENV): $(READY)

# --- chapters ------------------------------------------------------------------------------------------------------

# A chapter is executed again when it, the package or the parameters changed. papermill writes its output even when a
# cell fails, so it gets a temporary name: what stands under the final name is whole.
$(EXECUTED)/%.ipynb: notebooks/%.ipynb $(CODE) $(SETTINGS) $(READY)
	@mkdir -p $(EXECUTED)
	@echo "executing chapter $* at scale $(EDITION); progress is in $(EXECUTED)/$*.log"
	@start=$$(date +%s); \
	if $(BIN)/python -m papermill --no-progress-bar --log-output --cwd notebooks -k python3 \
	    $(SETTINGS:%=-f %) $< $(EXECUTED)/$*.partial.ipynb > $(EXECUTED)/$*.log 2>&1; \
	then \
	    mv $(EXECUTED)/$*.partial.ipynb $@; \
	    echo "chapter $*: $$(( $$(date +%s) - start )) s"; \
	else \
	    tail -n 40 $(EXECUTED)/$*.log; \
	    echo "chapter $* FAILED at scale $(EDITION): the error is above, all of it in $(EXECUTED)/$*.log, the cells in $(EXECUTED)/$*.partial.ipynb" >&2; \
	    exit 1; \
	fi

# Two at a time. Later chapters load what earlier ones computed, so these run one after the other; those on computing, on
# data, on the world and on the prior need no more than the first, and run beside, with one thread: they fill the core that
# an odd number of trainings leaves idle. The order alone does not make a chapter run again.
MAKEFLAGS += -j2
ASIDE := $(filter 07_% 08_% 09_% 10_%,$(CHAPTERS))
$(ASIDE:%=$(EXECUTED)/%.ipynb): private export OMP_NUM_THREADS := 1
define after
$(EXECUTED)/$(2).ipynb: | $(EXECUTED)/$(1).ipynb
endef
chain = $(foreach i,$(wordlist 2,$(words $(1)),$(1)),$(eval $(call after,$(previous),$(i)))$(eval previous := $(i)))
previous := $(firstword $(CHAPTERS))
$(call chain,$(filter-out $(ASIDE),$(CHAPTERS)))
previous := $(firstword $(CHAPTERS))
$(call chain,$(firstword $(CHAPTERS)) $(ASIDE))

# Some chapters show what the benchmarks wrote.
$(filter %/04_finetuning.ipynb %/07_full_strength.ipynb %/09_world.ipynb %/10_prior.ipynb,$(DONE)): $(wildcard book/results/benchmarks/*)

# The record shows what all chapters found, and the committed results.
$(RECORD): $(filter-out $(RECORD),$(DONE)) $(RESULTS)

$(SETTINGS):
	@echo "no file of parameters $@; the scales are: $(basename $(notdir $(wildcard notebooks/params/*.yaml)))" >&2; exit 1

chapters: $(DONE)

ifdef N
CHAPTER := $(filter $(N)_%,$(CHAPTERS))
endif
chapter: $(CHAPTER:%=$(EXECUTED)/%.ipynb)  ## execute one chapter and those before it: make chapter N=03
	$(if $(CHAPTER),,$(error no chapter '$(N)': say one of $(foreach c,$(CHAPTERS),N=$(firstword $(subst _, ,$(c))))))
	@echo "executed: $<"

# --- book ----------------------------------------------------------------------------------------------------------

book: $(BOOK)/index.html

# Built elsewhere and moved when whole. --all, because an unchanged page would not repeat its warnings. jupyter-book
# wants its sources in one tree, so the chapters of this edition are copied there first.
$(BOOK)/index.html: $(DONE) $(PAGES) $(RESULTS) $(READY)
	@test -n "$(DONE)" || { echo "no chapters in notebooks/" >&2; exit 1; }
	@rm -rf book/chapters .cache/book && mkdir -p book/chapters .cache _build
	@cp $(DONE) book/chapters/
	@echo "building the book"
	@if ! NO_COLOR=1 $(BIN)/python $(BIN)/jupyter-book build . --path-output .cache/book --all -W -n --keep-going > .cache/book.log 2>&1; \
	then \
	    grep -E '(WARNING|ERROR|CRITICAL):|Error|Exception' .cache/book.log | sort -u | tail -n 40; \
	    echo "the book was NOT built: see .cache/book.log" >&2; \
	    exit 1; \
	fi
	@rm -rf $(BOOK) && mv .cache/book/_build/html $(BOOK) && touch $@

# --- checks --------------------------------------------------------------------------------------------------------

lint: $(READY)  ## ruff on the package, the tests and the notebooks
	@$(BIN)/python -m ruff check --no-cache .

# The tests look at the smoke edition of the book, whatever SCALE is, and close with one summary for everything. Files of
# tests run side by side, a process and a thread per core.
test: lint  ## lint, unit tests, notebook tests, test of the built book
	@$(MAKE) --no-print-directory book SCALE=smoke PARAMS=
	@KINEMIC_BOOK=_build/smoke OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider -n auto --dist loadfile \
	    --nbval-lax --nbval-current-env --nbval-cell-timeout=600 tests notebooks

# --- results -------------------------------------------------------------------------------------------------------

prior: $(READY)  ## train the shipped prior again; an interrupted run resumes
	@$(BIN)/python tools/train_prior.py $(SCALE)

results: $(READY)  ## copy the manifests of this scale's runs into book/results, to be committed
	@$(BIN)/python -m kinemic.artefacts promote $(SCALE)

benchmarks: $(READY)  ## measure speed and write book/results/benchmarks; wants an idle machine
	@for script in $(wildcard benchmarks/*.py); do $(BIN)/python $$script || exit 1; done

clean:  ## remove built books and executed chapters; keep the environment and the computed artefacts
	rm -rf _build book/chapters .cache/executed .cache/book .cache/book.log

distclean: clean  ## remove the environment and all computed artefacts too
	rm -rf .venv .cache .hypothesis *.egg-info
