"""Run DPPMG, or any RecBole model beside it: `python run_dppmg.py --dataset=ml-100k --key=value`."""

import sys

from recbole_dppmg.cli import main

if __name__ == "__main__":
    sys.exit(main())
