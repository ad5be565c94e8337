# Everything runs in .venv, made by scripts/venv.sh with exactly the versions of constraints.txt.

.PHONY: demo test lint clean

demo:  ## train DPPMG on ml-100k through all its phases; prints the path of the report last
	@sh scripts/venv.sh example
	@.venv/bin/python run_dppmg.py

test:  ## the whole test suite
	@sh scripts/venv.sh example,serve,test
	@.venv/bin/python -m pytest

lint:  ## style, as in continuous integration
	@sh scripts/venv.sh example,serve,test
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

clean:  ## remove the environment and what runs left; models and covers stay in the user's cache
	rm -rf .venv build dist *.egg-info outputs log log_tensorboard saved
