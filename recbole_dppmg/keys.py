"""The keys of a run, ours and RecBole's: which exist, their defaults and meaning, and what each may be.

Reads YAML only; RecBole itself, which takes seconds to import, is not needed to know or to explain a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from recbole_dppmg.errors import ConfigError
from recbole_dppmg.settings import Settings, allowed, checked

#: Keys that RecBole's code reads and none of its files of defaults has.
_UNLISTED = frozenset(
    {"model", "dataset", "encoding", "tail_ratio", "valid_neg_sample_args", "test_neg_sample_args"}
    | {"nproc", "world_size", "ip", "port", "eta", "norm", "has_residual", "contrast", "sim", "use_filter"}
    | {"feature_num", "xgb_early_stopping_rounds", "token_num_threshold"}
)
#: RecBole's defaults for every model and dataset, in its own order of precedence.
_GENERAL = ("overall.yaml", "dataset/sample.yaml")
_POSITIVE = frozenset({"epochs", "train_batch_size", "eval_batch_size", "learning_rate", "embedding_size"})
_NOT_NEGATIVE = frozenset({"seed", "worker", "eval_step", "stopping_step", "weight_decay"})


class Loader(yaml.SafeLoader):
    """YAML without Python objects, in which `1e-3` is a number, as in RecBole's files, and `None` is null."""


_NUMBER = r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_NUMBER})$"), list("-+0123456789."))
Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^None$"), ["N"])


class _Mapping(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class EvalArgs(_Mapping):
    """What RecBole's `eval_args` may hold."""

    split: dict[Literal["RS", "LS"], Any] = Field({"RS": [0.8, 0.1, 0.1]}, min_length=1, max_length=1)
    group_by: Literal["user", "none"] | None = "user"
    order: Literal["RO", "TO"] = "RO"
    mode: str | dict[Literal["valid", "test"], str] = "full"


class NegativeArgs(_Mapping):
    """What RecBole's `train_neg_sample_args` may hold."""

    distribution: Literal["uniform", "popularity", "none", "None"] | None = "uniform"
    sample_num: PositiveInt | Literal["none"] = 1
    alpha: NonNegativeFloat | Literal["none"] = 1.0
    dynamic: bool = False
    candidate_num: NonNegativeInt = 0


_MAPPINGS: dict[str, type[BaseModel]] = {"eval_args": EvalArgs, "train_neg_sample_args": NegativeArgs}


def parse(text: str) -> Any:
    """A YAML value; never a Python object. Raises yaml.YAMLError."""
    return yaml.load(text, Loader)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, not a mapping, or a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader)
        found = parse(text) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config file {path}: cannot be read ({reason})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"config file {path}: expected lines of the form 'key: value'")
    names = [key.value for key, _ in node.value] if found else []
    for name in found:
        if not isinstance(name, str) or names.count(name) > 1:
            raise ConfigError(
                f"config file {path}: key '{name}' is {'not text' if name not in names else 'given twice'}"
            )
    return found


def properties_dir() -> Path:
    """Where our YAML files are: inside the installed package, or beside the package in a clone."""
    package = Path(__file__).parent
    inside = package / "properties"
    return inside if inside.is_dir() else package.parent / "properties"


def recbole_dir() -> Path:
    """The installed RecBole."""
    return Path(find_spec("recbole").origin).parent


def shipped(file: str | Path) -> Path:
    """One of our YAML files, by its path inside `properties/`.

    Raises:
        ConfigError: there is none.
    """
    found = properties_dir() / file
    if not found.is_file():
        raise ConfigError(f"config file {file}: no such file, neither here nor in {properties_dir()}")
    return found


def defaults(model: str, dataset: str) -> dict[str, Any]:
    """Our defaults for a model on a dataset, over RecBole's."""
    found: dict[str, Any] = {}
    for file in ("overall.yaml", f"model/{model}.yaml", f"dataset/{dataset}.yaml"):
        if (properties_dir() / file).is_file():
            found |= read_yaml(properties_dir() / file)
    return found


@cache
def models() -> frozenset[str]:
    """Every model by name: RecBole's have a file of defaults each, but for the few that need none."""
    files = (recbole_dir() / "properties" / "model").glob("*.yaml")
    return frozenset({"DPPMG", "Random", *(file.stem for file in files)})


@cache
def model_keys(model: str) -> Mapping[str, Any]:
    """The keys of one RecBole model with their defaults."""
    file = recbole_dir() / "properties" / "model" / f"{model}.yaml"
    return read_yaml(file) if file.is_file() else {}


@cache
def recbole_keys() -> Mapping[str, Any]:
    """The keys that RecBole has for every model, with their defaults where it has them."""
    found: dict[str, Any] = dict.fromkeys(_UNLISTED)
    for file in _GENERAL:
        found |= read_yaml(recbole_dir() / "properties" / file)
    return found


def check_known(names: Iterable[Any], known: Iterable[str], what: str = "key") -> None:
    """Raises a ConfigError for the first name that is not known, with the nearest that are."""
    known = set(known)
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown {what} '{name}'{nearest(str(name), known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known names that are most like this one."""
    spelled = {name.lower(): name for name in sorted(known)}
    near = get_close_matches(name.lower(), spelled, n=3, cutoff=0.6)
    return f"; nearest: {', '.join(spelled[n] for n in near)}" if near else "; see --help and properties/"


def check_value(key: str, value: Any, default: Any) -> None:
    """A value of RecBole's has the type of its default.

    A model's own keys may be fractions where the default is whole. A list of one may be given bare, as in RecBole.

    Raises:
        ConfigError: naming the key and what it may be.
    """
    if value is None and (key not in recbole_keys() or type(default) not in (int, float)):
        return  # empty switches many a thing off, but numbers are used as they are
    if key in _MAPPINGS and isinstance(value, dict):
        try:
            checked(_MAPPINGS[key], value)
        except ConfigError as error:
            raise ConfigError(f"key '{key}': {error}") from error
        return
    wanted = "" if key == "gpu_id" and isinstance(value, (int, tuple)) else _wanted(key, value, default)
    if wanted:
        raise ConfigError(f"key '{key}': {value!r}: it is not {wanted}")


def _wanted(key: str, value: Any, default: Any) -> str:
    """What a value should have been, in words; empty if it is that."""
    general = key in recbole_keys()
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key in _POSITIVE and not (number and value > 0):
        return "a number > 0"
    if key in _NOT_NEGATIVE and not (number and value >= 0):
        return "a number >= 0"
    if key in _MAPPINGS or isinstance(default, dict):
        return "" if isinstance(value, dict) else "a mapping, as {key: value}"
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int) and general:
        return "" if number and value == value // 1 else "an integer"
    if isinstance(default, (int, float)):
        return "" if number else "a number"
    if isinstance(default, str):
        return "" if isinstance(value, str) else "text"
    if isinstance(default, list):
        values = value if isinstance(value, (list, tuple)) else [value]
        kind = type(default[0]) if default and general else object
        fine = all(isinstance(entry, kind) and not isinstance(entry, (bool, dict)) for entry in values)
        return "" if fine else {int: "a list of integers", str: "a list of texts"}.get(kind, "a list")
    return ""


class _Line(NamedTuple):
    """A key in a file of defaults: its value and comment there."""

    value: str
    comment: str


def _lines(folder: Path, key: str) -> dict[str, _Line]:
    """Where the YAML files of a folder set a key, by path inside it."""
    line = re.compile(rf"^{re.escape(key)}:[ ]*(.*?)[ ]*(?:#[ ]*(.*))?$", re.MULTILINE)
    found = {}
    for file in sorted(folder.rglob("*.yaml"), key=lambda file: (len(file.parts), file)):
        if match := line.search(file.read_text(encoding="utf-8")):
            found[file.relative_to(folder).as_posix()] = _Line(match[1], (match[2] or "").strip())
    return found


def describe(key: str) -> str:
    """What a key means, may be and is by default, in a few lines.

    Raises:
        ConfigError: there is no such key, ours or RecBole's.
    """
    ours, theirs = _lines(properties_dir(), key), _lines(recbole_dir() / "properties", key)
    field = Settings.model_fields.get(key)
    if not (field or ours or theirs):
        check_known([key], set(Settings.model_fields) | set(recbole_keys()).union(*map(model_keys, models())))
    comments = [line.comment for line in (*ours.values(), *theirs.values()) if line.comment]
    meaning = field.description if field else next(iter(comments), "a key of RecBole; see its documentation")
    lines = [f"{key}: {meaning}"]
    if field:
        lines.append(f"  may be: {allowed(Settings, key)}")
    elif key in _MAPPINGS:
        lines += [f"  {name}: {allowed(_MAPPINGS[key], name)}" for name in _MAPPINGS[key].model_fields]
    defaults = {file: line for file, line in ours.items() if not file.startswith(("tuning/", "preset/"))}
    found = {f"properties/{file}": line for file, line in defaults.items()}
    found |= {f"RecBole's {file}": line for file, line in theirs.items() if file in _GENERAL}
    lines += [f"  default: {line.value or '(a mapping)'} in {file}" for file, line in found.items()]
    if models_with := [Path(file).stem for file in theirs if file.startswith("model/")]:
        lines.append(f"  also a key of RecBole's {', '.join(models_with)}, with defaults of their own")
    return "\n".join(lines)
