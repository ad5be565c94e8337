"""RecBole's `Config` with our defaults, our keys, and nothing evaluated.

Precedence as in RecBole: command line, dictionary, files, defaults. Unlike RecBole's, this one never reads
`sys.argv` by itself, never calls `eval`, leaves `yaml` and numpy as they are, and refuses unknown keys.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import recbole
import yaml
from pydantic import ValidationError
from recbole.config import Config
from recbole.utils import ModelType, argument_list

from recbole_dppmg.errors import ConfigError, DataError
from recbole_dppmg.settings import Settings

_RECBOLE = Path(recbole.__file__).parent
#: Keys that RecBole reads and lists nowhere.
_UNLISTED = {"model", "dataset", "valid_neg_sample_args", "test_neg_sample_args", "nproc", "world_size", "ip", "port"}
_POSITIVE = ("epochs", "train_batch_size", "eval_batch_size", "learning_rate", "embedding_size")
_NAMES = ("model", "dataset", "data_path", "checkpoint_dir", "config_files")  # text, even where it looks like a number


class _Loader(yaml.SafeLoader):
    """YAML without Python objects, in which `1e-3` is a number, as in RecBole's files, and `None` is null."""


_NUMBER = r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_NUMBER})$"), list("-+0123456789."))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^None$"), ["N"])


def properties_dir() -> Path:
    """Where our YAML files are: inside the installed package, or beside the package in a clone."""
    package = Path(__file__).parent
    inside = package / "properties"
    return inside if inside.is_dir() else package.parent / "properties"


def defaults(model: str, dataset: str) -> dict[str, Any]:
    """Our defaults for a model on a dataset, over RecBole's."""
    return _merged(properties_dir(), model, dataset)


def _merged(root: Path, model: str, dataset: str) -> dict[str, Any]:
    files = [root / "overall.yaml", root / "model" / f"{model}.yaml", root / "dataset" / f"{dataset}.yaml"]
    found: dict[str, Any] = {}
    for file in files:
        if file.is_file():
            found |= read_yaml(file)
    return found


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found = yaml.load(file, _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config file {path}: cannot be read ({reason})") from error
    if not isinstance(found or {}, dict):
        raise ConfigError(f"config file {path}: expected lines of the form 'key: value'")
    return found or {}


def parse_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """`--key=value` arguments as a mapping; values are YAML, e.g. `--topk=[10,20]`, `--learning_rate=1e-3`.

    Raises:
        ConfigError: an argument of another form, a value that is not YAML, a key given twice.
    """
    found: dict[str, Any] = {}
    for argument in argv:
        key, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals or not key:
            raise ConfigError(f"'{argument}' is not of the form --key=value")
        try:
            value = text if key in _NAMES else yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"--{key}: '{text}' is not a value in YAML; quote it") from error
        value = "" if text == "" else value
        if key in found and found[key] != value:
            raise ConfigError(f"--{key} is given twice, as {found[key]} and as {value}; give it once")
        found[key] = value
    return found


class DPPMGConfig(Config):
    """A run's configuration: RecBole's keys by `config[key]`, ours also typed, as `config.settings`.

    Args:
        model, dataset: names; None: as configured, else DPPMG and ml-100k.
        config_file_list: YAML files, later ones win; names that do not exist are looked up in our `properties/`.
        config_dict: keys and values, taken as they are.
        argv: arguments `--key=value`; `--config_files="a.yaml b.yaml"` adds files.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type or range.
        DataError: the dataset is not there, or lacks a column.
    """

    def __init__(
        self,
        model: str | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | Path] = (),
        config_dict: Mapping[str, Any] | None = None,
        argv: Sequence[str] = (),
    ):
        self._arguments = parse_arguments(argv)
        files = [*config_file_list, *str(self._arguments.pop("config_files", "")).split()]
        try:
            super().__init__(model, dataset, files, config_dict)
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
            raise ConfigError(f"configuration: {error.args[0] if error.args else error}") from error
        self.settings = self._checked_settings()
        self._check_data()

    def _build_yaml_loader(self):
        return _Loader

    def _init_parameters_category(self):
        super()._init_parameters_category()
        # RecBole extends these lists for every dataset, in place
        self.parameters = copy.deepcopy(self.parameters)

    def _load_config_files(self, file_list):
        found: dict[str, Any] = {}
        for file in file_list:
            found |= read_yaml(file if Path(file).is_file() else _ours(file))
        return found

    def _load_variable_config_dict(self, config_dict):
        return copy.deepcopy(dict(config_dict or {}))

    def _load_cmd_line(self):
        return dict(self._arguments)

    def _get_model_and_dataset(self, model, dataset):
        model = self.external_config_dict.get("model", "DPPMG") if model is None else model
        dataset = self.external_config_dict.get("dataset", "ml-100k") if dataset is None else dataset
        dataset = str(dataset)
        if isinstance(model, str) and model not in _models():
            raise ConfigError(f"unknown model '{model}'{_nearest(model, _models())}")
        return super()._get_model_and_dataset(model, dataset)

    def _load_internal_config_dict(self, model, model_class, dataset):
        super()._load_internal_config_dict(model, model_class, dataset)
        self.internal_config_dict |= defaults(model, dataset)
        self._check_keys(model)
        for key, value in self.external_config_dict.items():
            _check_type(key, value, self.internal_config_dict.get(key))

    def _check_keys(self, model: str) -> None:
        baselines = self.external_config_dict.get("baselines", self.internal_config_dict.get("baselines")) or []
        known = set(self.internal_config_dict) | set(Settings.model_fields) | _recbole_keys()
        for name in (model, *(baselines if isinstance(baselines, list) else [])):
            known |= _merged(_RECBOLE / "properties", str(name), "").keys()
        for key in self.external_config_dict:
            if key not in known:
                raise ConfigError(f"unknown key '{key}'{_nearest(str(key), known)}")

    def _set_default_parameters(self):
        final = self.final_config_dict
        given = final["data_path"]
        if final["MODEL_TYPE"] == ModelType.SEQUENTIAL and final.get("loss_type") == "CE":
            # such models score all items at once and refuse RecBole's default of sampled ones
            final["train_neg_sample_args"] = self.external_config_dict.get("train_neg_sample_args")
        super()._set_default_parameters()
        # RecBole takes its own ml-100k even where the user has one
        final["data_path"] = str(_find_dataset(Path(str(given)), self.dataset, final.get("benchmark_filename")))

    def _checked_settings(self) -> Settings:
        given = {key: self.final_config_dict[key] for key in Settings.model_fields if key in self.final_config_dict}
        try:
            settings = Settings(**{key: value for key, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0])
            meaning = Settings.model_fields[key].description
            raise ConfigError(f"key '{key}': {first['input']!r} is not {_allowed(key)} ({meaning})") from error
        self.final_config_dict.update(settings.model_dump())
        return settings

    def _check_data(self) -> None:
        """The columns that the split needs are there; the time is loaded where the split is by time."""
        final = self.final_config_dict
        for file in _interaction_files(Path(final["data_path"]), self.dataset, final["benchmark_filename"]):
            with open(file, encoding="utf-8") as lines:
                columns = lines.readline().rstrip("\n").split(final["field_separator"])
            names = [column.split(":")[0] for column in columns]
            needed = ["USER_ID_FIELD", "ITEM_ID_FIELD"]
            if final["eval_args"]["order"] == "TO" and not final["benchmark_filename"]:
                needed.append("TIME_FIELD")
            for key in needed:
                if final[key] not in names:
                    raise DataError(
                        f"{file}: no column '{final[key]}' ({key}); its columns are {', '.join(names)}; "
                        + ("set TIME_FIELD, or eval_args.order to RO" if key == "TIME_FIELD" else f"set {key}")
                    )
                columns_loaded = (final["load_col"] or {}).get("inter")
                if columns_loaded is not None and final[key] not in columns_loaded:
                    columns_loaded.append(final[key])


def _ours(file: str | Path) -> Path:
    found = properties_dir() / file
    if not found.is_file():
        raise ConfigError(f"config file {file}: no such file, neither here nor in {properties_dir()}")
    return found


@cache
def _models() -> frozenset[str]:
    """Every model by name: RecBole's have a file of defaults each, but for the few that need none."""
    files = (_RECBOLE / "properties" / "model").glob("*.yaml")
    return frozenset({"DPPMG", "Random", *(file.stem for file in files)})


@cache
def _recbole_keys() -> frozenset[str]:
    """The keys that RecBole has for every model."""
    found = set(_UNLISTED)
    for group in (
        argument_list.general_arguments,
        argument_list.training_arguments,
        argument_list.evaluation_arguments,
        argument_list.dataset_arguments,
    ):
        found |= set(group)
    return frozenset(found)


def _nearest(name: str, known: set[str] | frozenset[str]) -> str:
    near = get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    return f"; nearest: {', '.join(near)}" if near else "; see --help and properties/"


def _check_type(key: str, value: Any, default: Any) -> None:
    """A value of RecBole's has the type of its default, where that is a number or a switch."""
    if key in Settings.model_fields or value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    wanted = None
    if isinstance(default, bool):
        wanted = None if isinstance(value, bool) else "true or false"
    elif isinstance(default, int):
        wanted = None if number and value == int(value) else "an integer"
    elif isinstance(default, float):
        wanted = None if number else "a number"
    if wanted is None and key in _POSITIVE and not (number and value > 0):
        wanted = "a number > 0"
    if wanted:
        raise ConfigError(f"key '{key}': {value!r} is not {wanted}")


def _allowed(key: str) -> str:
    """What a key of ours may be, in words, from its schema."""
    return _words(Settings.model_json_schema()["properties"][key])


_TYPES = {"string": "text", "integer": "an integer", "number": "a number", "boolean": "true or false", "null": "empty"}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def _words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_words(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if schema.get("type") == "array":
        return f"a list, each {_words(schema['items'])}"
    bounds = [f"{sign} {schema[name]}" for name, sign in _BOUNDS.items() if name in schema]
    return " ".join([_TYPES.get(schema.get("type"), "allowed"), " and ".join(bounds)]).strip()


def _interaction_files(folder: Path, dataset: str, parts: Sequence[str] | None) -> list[Path]:
    return [folder / ".".join([dataset, *part, "inter"]) for part in ([[name] for name in parts] if parts else [[]])]


def _find_dataset(data_path: Path, dataset: str, parts: Sequence[str] | None) -> Path:
    """The folder of a dataset: `data_path/dataset`, or the example inside RecBole.

    Raises:
        DataError: naming where it was looked for, and the datasets at hand.
    """
    example = _RECBOLE / "dataset_example"
    folders = [data_path / dataset, example / dataset]
    for folder in folders:
        if all(file.is_file() for file in _interaction_files(folder, dataset, parts)):
            return folder
    wanted = ", ".join(file.name for file in _interaction_files(folders[0], dataset, parts))
    at_hand = sorted({file.stem for root in (data_path, example) for file in root.glob("*/*.inter")})
    raise DataError(
        f"dataset '{dataset}': no {wanted} in {folders[0].resolve()}; datasets at hand: {', '.join(at_hand)}; "
        "set dataset, or data_path to the folder that has it"
    )
