# The few commands of this project, in the active virtual environment (see CONTRIBUTING.md). CI calls .ci/run.
.PHONY: lint types fast slow docs pages bench

PYTEST = python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint:
	ruff check .

types:
	mypy

fast:  # the default suite
	$(PYTEST)

slow:  # the long runs alone
	$(PYTEST) -m slow

docs:  # the site, into site/; a link that leads nowhere is an error
	mkdocs build --strict

pages:  # what pages and examples say is so
	python -m pytest tests/test_docs.py tests/test_docs_numbers.py tests/test_readme.py tests/test_limits.py tests/test_features.py tests/test_architecture.py tests/test_contributing.py tests/test_example_configs.py tests/algorithm/test_public.py tests/runs/test_walkthrough.py

bench:  # what there is to be measured; the script's own head says how it is run
	@grep '\.py)' benchmarks/README.md
