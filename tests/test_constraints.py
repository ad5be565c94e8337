import configparser
import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def declared():
    file = configparser.ConfigParser()
    file.read(ROOT / "setup.cfg")
    lists = [file["options"]["install_requires"], *file["options.extras_require"].values()]
    return [Requirement(line) for text in lists for line in text.splitlines() if line and not line.startswith("#")]


def test_everything_that_is_installed_is_pinned():
    """What setup.cfg asks for and, followed as far as it is installed here, what those packages ask for."""
    known, missing, seen = pins(), set(), set()
    queue = declared()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        if name not in known:
            missing.add(name)
        try:
            found = map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            continue
        extras = ("", *requirement.extras)
        queue += [r for r in found if not r.marker or any(r.marker.evaluate({"extra": extra}) for extra in extras)]
    assert not missing, "pin them in constraints.txt"


def test_the_pins_are_exact_and_allowed():
    known = pins()
    for name, version in known.items():
        assert canonicalize_name(name) == name
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version}"
    for requirement in declared():
        assert requirement.specifier.contains(known[canonicalize_name(requirement.name)]), requirement


def test_what_the_package_imports_is_declared():
    from importlib.metadata import packages_distributions
    from sys import stdlib_module_names

    from test_layout import MODULES, imports

    dists, names = packages_distributions(), {canonicalize_name(r.name) for r in declared()}
    imported = {name.split(".")[0] for tree in MODULES.values() for name, _ in imports(tree)}
    for name in imported - stdlib_module_names - {"recbole_dppmg"}:
        assert names & {canonicalize_name(dist) for dist in dists.get(name, [name])}, f"{name}: not in setup.cfg"
