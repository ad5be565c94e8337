"""The command line: `run_dppmg.py --model= --dataset= --config_files= --key=value`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from recbole_dppmg.errors import ConfigError, DPPMGError

_USAGE = """\
usage: run_dppmg.py [--model=DPPMG] [--dataset=ml-100k] [--config_files="a.yaml b.yaml"] [--key=value ...]

Trains the model on the dataset, evaluates it, and leaves a folder with a report under outputs/.
--model takes any RecBole model. Every key of RecBole and of properties/ can be given as --key=value;
the command line wins over config files, config files over defaults.

keys of recbole-dppmg:"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 after bad input, told in one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(_USAGE)
        print("\n".join(_keys()))
        return 0
    try:
        if stray := [argument for argument in argv if not argument.startswith("--") or "=" not in argument]:
            raise ConfigError(f"'{stray[0]}' is not of the form --key=value; see --help")
        from recbole_dppmg.pipeline import run_from_arguments

        print(f"report: {run_from_arguments(argv)}")
    except DPPMGError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _keys() -> list[str]:
    from recbole_dppmg.settings import Settings

    return [f"  {name:28} {field.description} [{field.default}]" for name, field in Settings.model_fields.items()]


if __name__ == "__main__":
    sys.exit(main())
