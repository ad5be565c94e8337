"""The command line: `run_dppmg.py [verb] --model= --dataset= --config_files= --key=value`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from recbole_dppmg.errors import DPPMGError

#: Verb: ("module:function", what it does). The function takes the arguments after the verb, raises DPPMGError for
#: bad input, and returns the exit code. It is imported when it is wanted.
VERBS: dict[str, tuple[str, str]] = {
    "import": ("recbole_dppmg.importing.main:main", "make a dataset of CSV files or of one in MMRec's layout"),
    "encode": ("recbole_dppmg.encoding:encode", "encode a dataset's texts and images; tell what is covered"),
    "tokens": ("recbole_dppmg.commands:tokens", "show what a user's preference tokens stand for"),
    "generate": ("recbole_dppmg.commands:generate", "make cards for users of a bundle"),
    "evaluate": ("recbole_dppmg.evaluate:main", "judge the texts and images that a run's bundle generates"),
    "tune": ("recbole_dppmg.tuning:tune", "search a model's keys by the validation metric"),
    "push": ("recbole_dppmg.hub:push", "upload a bundle to the Hugging Face hub"),
    "serve": ("recbole_dppmg.serving.main:main", "serve a bundle over HTTP, with a page"),
}

_USAGE = """\
usage: run_dppmg.py [verb] [--model=DPPMG] [--dataset=ml-100k] [--config_files="a.yaml b.yaml"] [--key=value ...]

Without a verb: trains the model on the dataset, evaluates it, and leaves a folder with a report under outputs/.
--model takes any RecBole model. Every key of RecBole and of properties/ can be given as --key=value;
the command line wins over config files, config files over defaults.
--resume goes on with the newest unfinished run of the same arguments, as if it had never stopped.
--help KEY explains a key, ours or RecBole's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 after bad input, told in one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(argv)
    except DPPMGError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _dispatch(argv: list[str]) -> int:
    first = argv[0] if argv else ""
    if first in VERBS:
        module, function = VERBS[first][0].split(":")
        return getattr(import_module(module), function)(argv[1:])
    for n, argument in enumerate(argv):
        name, _, key = argument.partition("=")
        if name in ("-h", "--help", "help"):
            return _help(key or next(iter(argv[n + 1 :]), ""))
    if first and not first.startswith("-"):
        from recbole_dppmg.keys import check_known

        check_known([first], VERBS, "verb")
    from recbole_dppmg.pipeline import run_from_arguments

    print(f"report: {run_from_arguments(argv)}")
    return 0


def _help(key: str) -> int:
    from recbole_dppmg import keys
    from recbole_dppmg.settings import Settings

    if key:
        print(keys.describe(key.removeprefix("--").partition("=")[0]))
        return 0
    print(_USAGE)
    if VERBS:
        print("\nverbs:")
        print("\n".join(f"  {verb:28} {meaning}" for verb, (_, meaning) in VERBS.items()))
    print("\nkeys of recbole-dppmg:")
    for name, field in Settings.model_fields.items():
        print(f"  {name:28} {field.description} [{'' if field.default is None else field.default}]")
    print("\nkeys of RecBole:")
    print("  " + ", ".join(sorted(keys.recbole_keys())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
