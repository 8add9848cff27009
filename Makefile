# Two commands do everything: `make shapes` and `make test`. Both set the environment up when it is not there yet.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/xsam
SHAPES = runs/shapes

.PHONY: setup shapes test check
setup: $(VENV)/stamp

$(VENV)/stamp: pyproject.toml requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

# The three stages on the embedded world, evaluated and drawn; starts anew each time.
shapes: setup
	rm -rf $(SHAPES)
	$(RUN) data prepare shapes
	$(RUN) train configs/shapes/stage1.py
	$(RUN) train configs/shapes/stage2.py
	$(RUN) train configs/shapes/stage3.py
	$(RUN) evaluate configs/shapes/stage3.py --checkpoint $(SHAPES)/stage3 --out $(SHAPES)
	$(RUN) evaluate configs/shapes/stage3.py --checkpoint random --out $(SHAPES)/untrained --limit 25
	$(RUN) predict --checkpoint $(SHAPES)/stage3 --image $$(ls data/shapes/val/* | head -8) --out $(SHAPES)/pictures
	$(RUN) evaluate --compare $(SHAPES) $(SHAPES)/untrained
	@echo "pictures: $(SHAPES)/pictures"

test: setup
	$(VENV)/bin/pytest

check: setup
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy
