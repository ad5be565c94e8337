"""RecBole's `Config` with our defaults, our keys, and nothing evaluated.

Precedence as in RecBole: command line, dictionary, files, defaults. Unlike RecBole's, this one never reads
`sys.argv` by itself, never calls `eval`, leaves `yaml` and numpy as they are, refuses unknown keys, and takes
`use_gpu: False` at its word.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from recbole.config import Config
from recbole.evaluator import metric_types
from recbole.utils import ModelType

from recbole_dppmg import keys
from recbole_dppmg.errors import ConfigError, DataError
from recbole_dppmg.settings import Settings, checked

_NAMES = (
    "model",
    "dataset",
    "data_path",
    "checkpoint_dir",
    "config_files",
)  # text, even where it looks like a number
_SEQUENTIAL_EVAL_ROWS = 4096  # RecBole's default; for these models a unit is a row of scores, not a score


def parse_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """`--key=value` arguments as a mapping; values are YAML, e.g. `--topk=[10,20]`, `--learning_rate=1e-3`.

    Raises:
        ConfigError: an argument of another form, a value that is not YAML, a key given twice.
    """
    found: dict[str, Any] = {}
    for argument in argv:
        key, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals or not key:
            raise ConfigError(f"'{argument}' is not of the form --key=value; see --help")
        try:
            value = text if key in _NAMES or not text else keys.parse(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"--{key}: '{text}' is not a value in YAML; quote it") from error
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
        self._check_metric()
        self.settings = self._checked_settings()
        self._check_data()

    def _build_yaml_loader(self):
        return keys.Loader

    def _init_parameters_category(self):
        super()._init_parameters_category()
        # RecBole extends these lists for every dataset, in place
        self.parameters = copy.deepcopy(self.parameters)

    def _load_config_files(self, file_list):
        found: dict[str, Any] = {}
        for file in file_list:
            found |= keys.read_yaml(file if Path(file).is_file() else keys.shipped(file))
        return found

    def _load_variable_config_dict(self, config_dict):
        return copy.deepcopy(dict(config_dict or {}))

    def _load_cmd_line(self):
        return dict(self._arguments)

    def _get_model_and_dataset(self, model, dataset):
        model = self.external_config_dict.get("model", "DPPMG") if model is None else model
        dataset = self.external_config_dict.get("dataset", "ml-100k") if dataset is None else dataset
        if isinstance(model, str):
            keys.check_known([model], keys.models(), "model")
        return super()._get_model_and_dataset(model, str(dataset))

    def _load_internal_config_dict(self, model, model_class, dataset):
        super()._load_internal_config_dict(model, model_class, dataset)
        self.internal_config_dict |= keys.defaults(model, dataset)
        if model_class.type == ModelType.SEQUENTIAL:
            self.internal_config_dict["eval_batch_size"] = _SEQUENTIAL_EVAL_ROWS
        self._check_external(model)

    def _check_external(self, model: str) -> None:
        """Names and types of what the user gave, before RecBole makes anything of it."""
        given, inside = self.external_config_dict, self.internal_config_dict
        baselines = given.get("baselines", inside.get("baselines"))
        known = set(inside) | set(Settings.model_fields) | set(keys.recbole_keys())
        for name in baselines if isinstance(baselines, list) else []:
            keys.check_known([name], keys.models(), "model")
            known |= set(keys.model_keys(name))
        keys.check_known(given, known)
        for key, value in given.items():
            if key not in Settings.model_fields or key in self._theirs(model):
                keys.check_value(key, value, inside.get(key))
        metrics = given.get("metrics") or []
        keys.check_known(
            [n.lower() for n in ([metrics] if isinstance(metrics, str) else metrics)], metric_types, "metric"
        )

    @staticmethod
    def _theirs(model: str) -> Mapping[str, Any]:
        """Keys that mean what another model means by them, even where DPPMG has one of the same name."""
        return {} if model == "DPPMG" else keys.model_keys(model)

    def _set_default_parameters(self):
        final = self.final_config_dict
        given = final["data_path"]
        if final["MODEL_TYPE"] == ModelType.SEQUENTIAL and final.get("loss_type") == "CE":
            # such models score all items at once and refuse RecBole's default of sampled ones
            final["train_neg_sample_args"] = self.external_config_dict.get("train_neg_sample_args")
        super()._set_default_parameters()
        # RecBole takes its own ml-100k even where the user has one
        final["data_path"] = str(_find_dataset(Path(str(given)), self.dataset, final.get("benchmark_filename")))

    def _init_device(self):
        if not self.final_config_dict["use_gpu"]:
            self.final_config_dict["gpu_id"] = ""
        super()._init_device()

    def _check_metric(self) -> None:
        """The metric that chooses the best epoch is among those computed; RecBole finds out after the first epoch."""
        wanted, topk = self["valid_metric"], self["topk"]
        name, _, k = str(wanted).lower().partition("@")
        if name not in {metric.lower() for metric in self["metrics"]} or (k and k not in map(str, topk)):
            raise ConfigError(
                f"key 'valid_metric': '{wanted}' is not computed; metrics are {', '.join(self['metrics'])} "
                f"at topk {topk}; set valid_metric to one of them, or add it to them"
            )

    def _checked_settings(self) -> Settings:
        final, theirs = self.final_config_dict, self._theirs(self.model)
        given = {key: final[key] for key in Settings.model_fields if key in final and key not in theirs}
        settings = checked(Settings, given)
        names = Settings.model_fields.keys() - theirs if self.model == "DPPMG" else given
        final.update({name: value for name, value in settings.model_dump().items() if name in names})
        return settings

    def _check_data(self) -> None:
        """The columns that the split needs are there; the time is loaded where the split is by time."""
        final = self.final_config_dict
        for file in _interaction_files(Path(final["data_path"]), self.dataset, final["benchmark_filename"]):
            with open(file, encoding=final.get("encoding") or "utf-8", errors="replace") as lines:
                columns = lines.readline().rstrip("\r\n").split(final["field_separator"])
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


def _interaction_files(folder: Path, dataset: str, parts: Sequence[str] | None) -> list[Path]:
    return [folder / ".".join([dataset, *part, "inter"]) for part in ([[name] for name in parts] if parts else [[]])]


def _find_dataset(data_path: Path, dataset: str, parts: Sequence[str] | None) -> Path:
    """The folder of a dataset: `data_path/dataset`, or the example inside RecBole.

    Raises:
        DataError: naming where it was looked for, and the datasets at hand.
    """
    example = keys.recbole_dir() / "dataset_example"
    folders = [data_path / dataset, example / dataset]
    for folder in folders if not folders[0].is_dir() else folders[:1]:
        if all(file.is_file() for file in _interaction_files(folder, dataset, parts)):
            return folder
    wanted = ", ".join(file.name for file in _interaction_files(folders[0], dataset, parts))
    at_hand = sorted({file.parent.name for root in (data_path, example) for file in root.glob("*/*.inter")})
    raise DataError(
        f"dataset '{dataset}': no {wanted} in {folders[0].resolve()}; datasets at hand: {', '.join(at_hand)}; "
        "set dataset, or data_path to the folder that has it"
    )


def resolved(config: Config) -> dict[str, Any]:
    """Every key with the value that it has in the run, as plain values; a config file for the same run again."""
    known = {"model", "dataset", *config.internal_config_dict, *config.external_config_dict} - {"MODEL_TYPE"}
    values = {key: _plain(config[key]) for key in sorted(known)}
    given = config.external_config_dict
    for key in ("data_path", "train_neg_sample_args"):  # RecBole derives other values from these
        values[key] = _plain(given.get(key, config.internal_config_dict.get(key)))
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Enum) or not isinstance(value, (str, int, float, bool, type(None))):
        return str(value)
    return value
