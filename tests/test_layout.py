"""Who imports whom, from the sources themselves: every import statement, also inside functions."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "recbole_dppmg"
#: A module imports what stands before it, or within its own group.
ORDER = (
    {"errors", "types"},
    {"artifacts", "settings", "progress"},
    {"assets", "keys"},
    {"compat", "config"},
    {"data", "importing"},
    {"model"},
    {"generators"},
    {"bundle", "bundle_files", "hub"},
    {"evaluation"},
    {"mlflow_model"},
    {"trainer", "runs"},
    {"plan"},
    {"pipeline", "commands", "encoding", "tuning", "evaluate"},
    {"serving"},
    {"cli"},
)
#: Where a library may be imported at all; a `*` after it: only inside functions.
ONLY = {
    "recbole": {"compat", "config", "data.dataset", "model.dppmg", "trainer", "evaluation.ranking", "pipeline"},
    "transformers*": {"data.encoders", "generators", "assets"},
    "diffusers*": {"data.encoders", "generators", "assets"},
    "peft*": {"data.encoders", "generators", "assets"},
}
#: Arrows that exist for a reason, as (module, what it imports).
EXCEPTIONS = {
    # the import hook gives RecBole our classes when it asks for them
    ("compat", "model"), ("compat", "trainer"), ("compat", "data"),
}  # fmt: skip


def modules():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree):
    """(dotted name, whether it is inside a function) of every import; `from a import b` counts as `a.b`."""
    typing = {id(node) for block in ast.walk(tree) if _for_types_only(block) for node in ast.walk(block)}
    lazy = {
        id(node) for block in ast.walk(tree) if isinstance(block, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(block)
    }  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from ((f"{node.module}.{alias.name}", id(node) in lazy) for alias in node.names)


def _for_types_only(block):
    return isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)


def within(name, places):
    return any(name == place or name.startswith(f"{place}.") for place in places)


def rank(name):
    top = name.split(".")[0]
    return next((n for n, group in enumerate(ORDER) if top in group), None)


MODULES = modules()


def test_every_module_has_its_place():
    missing = {name for name in MODULES if name and rank(name) is None}
    assert not missing, f"say in ORDER where they belong: {missing}"


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_imports_go_one_way(name):
    for imported, _ in imports(MODULES[name]):
        if imported.startswith("recbole_dppmg."):
            target = imported.removeprefix("recbole_dppmg.")
            if rank(target) is None or (name, target.split(".")[0]) in EXCEPTIONS:
                continue
            assert rank(target) <= rank(name), f"{name} imports {target}"
            assert not (name.startswith("serving") and target.startswith("trainer")), f"{name} imports {target}"


@pytest.mark.parametrize("library", ONLY)
def test_libraries_are_imported_where_they_belong(library):
    name, lazily = library.rstrip("*"), library.endswith("*")
    for module, tree in MODULES.items():
        for imported, inside in imports(tree):
            if within(imported, [name]):
                assert within(module, ONLY[library]), f"{module} imports {name}"
                assert inside or not lazily, f"{module} imports {name} when it is itself imported"


def test_the_test_sees_what_it_should():
    tree = ast.parse("import a.b\nfrom c import d\ndef f():\n    import e\nif TYPE_CHECKING:\n    import g\n")
    assert list(imports(tree)) == [("a.b", False), ("c.d", False), ("e", True)]
    assert rank("generators.tokens") > rank("model.space") > rank("data")
    assert within("data.dataset", {"data.dataset"})
    assert not within("data.datasets", {"data.dataset"})
