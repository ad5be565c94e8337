# Everything runs in .venv, made by scripts/venv.sh with exactly the versions of constraints.txt.

.PHONY: demo test lint clean

demo:  ## train DPPMG on ml-100k through all its phases; prints the path of the report last
	@sh scripts/venv.sh example
	@.venv/bin/python run_dppmg.py

test:  ## the whole test suite, in two processes of one thread each
	@sh scripts/venv.sh example,serve,test
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile $(PYTEST_FLAGS)

lint:  ## style, as in continuous integration
	@sh scripts/venv.sh example,serve,test
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

clean:  ## remove the environment and what runs left; models and covers stay in the user's cache
	rm -rf .venv build dist *.egg-info outputs log log_tensorboard saved
