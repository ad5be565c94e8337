import copy
from pathlib import Path

import pytest
import yaml
from preference_data import write_dataset

from recbole_dppmg import keys
from recbole_dppmg.config import DPPMGConfig, parse_arguments
from recbole_dppmg.errors import ConfigError, DataError
from recbole_dppmg.settings import ContentSettings, PreferenceSettings, Settings, group_of

SHIPPED = sorted(f for f in keys.properties_dir().rglob("*.yaml") if f.parent.name != "tuning")  # those: test_tuning


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def config(data_path, *argv, **given):
    return DPPMGConfig(argv=["--dataset=tiny", f"--data_path={data_path}", *argv], config_dict=given)


def test_precedence(data_path, tmp_path):
    file, later = tmp_path / "a.yaml", tmp_path / "b.yaml"
    file.write_text("tau: 0.3\nknn_k: 7\nepochs: 11\nn_layers: 1\n")
    later.write_text("knn_k: 8\n")
    found = config(data_path, f"--config_files={file} {later}", "--epochs=13", epochs=12, n_layers=2)
    assert found["epochs"] == 13  # the command line
    assert found["n_layers"] == found.settings.n_layers == 2  # the dictionary
    assert found["tau"] == 0.3  # a file
    assert found["knn_k"] == 8  # the later file
    assert found["learning_rate"] == 0.007  # our defaults over RecBole's
    assert found["learner"] == "adam"  # RecBole's
    assert DPPMGConfig(config_file_list=[file, later])["knn_k"] == 8


def test_our_defaults_are_those_of_the_schema():
    found = DPPMGConfig("DPPMG", "ml-100k")
    ml = {"title_field": "movie_title", "attribute_field": "class", "year_field": "release_year", "image_dir": "drawn"}
    assert found.settings == Settings(**ml)
    written = keys.defaults("DPPMG", "")
    assert {name: written[name] for name in Settings.model_fields} == Settings().model_dump()


def test_every_key_of_ours_says_in_the_files_what_it_is():
    files = [keys.shipped("overall.yaml"), keys.shipped("model/DPPMG.yaml")]
    for name, field in Settings.model_fields.items():
        file = next(file for file in files if name in keys.read_yaml(file))
        line = next(line for line in file.read_text().splitlines() if line.startswith(f"{name}:"))
        assert line.partition(" # ")[2].strip() == field.description, f"{file.name}: {name}"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(keys.properties_dir())))
def test_every_shipped_file(file, data_path):
    """As `--config_files`, by its name inside `properties/`, on another dataset; every key in it is known."""
    name = str(file.relative_to(keys.properties_dir()))
    found = config(data_path, f"--config_files={name}")
    for key, value in keys.read_yaml(file).items():
        if key not in ("eval_args", "train_neg_sample_args"):  # RecBole completes these
            assert found[key] == value


def test_files_for_any_dataset():
    found = DPPMGConfig(argv=["--config_files=dataset/ml-100k-overall-time.yaml"])
    assert found["eval_args"]["group_by"] == "none"
    assert found["load_col"]["inter"] == ["user_id", "item_id", "rating", "timestamp"]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--emebdding_size=3", ["unknown key 'emebdding_size'", "nearest: embedding_size"]),
        ("--quantiser_levels=3", ["unknown key", "nearest: quantizer_levels"]),
        ("--model=lightgcn", ["unknown model 'lightgcn'", "LightGCN"]),
        ("--baselines=[LightGNC]", ["unknown model 'LightGNC'", "LightGCN"]),
        ("--metrics=[Recal]", ["unknown metric", "recall"]),
        ("--epochs=many", ["'epochs'", "'many'", "a number > 0"]),
        ("--epochs=0", ["'epochs'", "a number > 0"]),
        ("--eval_step=1.5", ["'eval_step'", "an integer"]),
        ("--learning_rate=[1]", ["'learning_rate'", "a number > 0"]),
        ("--worker=true", ["'worker'", "a number >= 0"]),
        ("--shuffle=7", ["'shuffle'", "true or false"]),
        ("--learner=3", ["'learner'", "text"]),
        ("--topk=[a]", ["'topk'", "a list of integers"]),
        ("--topk=[10]", ["'valid_metric'", "NDCG@20", "[10]"]),
        ("--load_col=[a]", ["'load_col'", "a mapping"]),
        ("--eval_args=TO", ["'eval_args'", "a mapping"]),
        ("--eval_args={odrer: TO}", ["'eval_args'", "'odrer'", "order"]),
        ("--eval_args={order: OT}", ["'eval_args'", "'order'", "one of RO, TO"]),
        ("--eval_args={split: {XS: [1]}}", ["'eval_args'", "'split'", "RS, LS"]),
        ("--eval_args={split: {}}", ["'eval_args'", "'split'"]),
        ("--train_neg_sample_args=5", ["'train_neg_sample_args'", "a mapping"]),
        ("--train_neg_sample_args={sample_num: 0}", ["'train_neg_sample_args'", "'sample_num'"]),
        ("--tau=0", ["'tau'", "0", "a number > 0", "temperature"]),
        ("--tau=warm", ["'tau'", "'warm'", "a number > 0"]),
        ("--tau=", ["'tau'", "''"]),
        ("--n_layers=~", ["'n_layers'", "None", "an integer > 0"]),
        ("--n_layers=2.5", ["'n_layers'", "2.5"]),
        ("--delta_dropout=1.5", ["'delta_dropout'", "a number >= 0 and <= 1"]),
        ("--text_fields=title", ["'text_fields'", "a list, each text or empty"]),
        ("--train_phases=[reward]", ["'train_phases'", "preference, injection, reward"]),
        ("--train_phases=[prefrence]", ["'train_phases'", "preference"]),
        ("--config_files=nowhere.yaml", ["nowhere.yaml", "no such file"]),
        ("--data_path=/nowhere", ["'tiny'", "tiny.inter", "/nowhere/tiny"]),
        ("--ITEM_ID_FIELD=movie", ["tiny.inter", "'movie'", "user_id, item_id, timestamp"]),
        ("--TIME_FIELD=date", ["'date'", "eval_args.order to RO"]),
    ],
)
def test_bad_input_names_the_key_and_what_it_may_be(data_path, argument, said):
    name = argument.partition("=")[0]
    given = [a for a in ("--dataset=tiny", f"--data_path={data_path}") if not a.startswith(name)]
    with pytest.raises((ConfigError, DataError)) as caught:
        DPPMGConfig(argv=[*given, argument])
    message = str(caught.value)
    assert all(words in message for words in said), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("list.yaml", "- a\n", "key: value"),
        ("broken.yaml", "a: [1\n", "cannot be read"),
        ("object.yaml", "tau: !!python/object/apply:os.getcwd []\n", "cannot be read"),
        ("twice.yaml", "tau: 0.1\nknn_k: 3\ntau: 0.2\n", "'tau' is given twice"),
        ("number.yaml", "5: 1\n", "'5'"),
        ("binary.yaml", "\udcff", "cannot be read"),
    ],
)
def test_bad_files(tmp_path, name, content, said):
    file = tmp_path / name
    file.write_text(content, errors="surrogateescape")
    with pytest.raises(ConfigError, match=f"{name}.*{said}"):
        DPPMGConfig(config_file_list=[file])


def test_values_are_yaml_and_never_evaluated(tmp_path):
    found = parse_arguments(
        ["--a=1e-3", "--b=[1, x]", "--c={k: 2}", "--d=None", "--e=1/0", "--f=", "--g=a=b", "--model=1"]
    )
    assert found == {"a": 1e-3, "b": [1, "x"], "c": {"k": 2}, "d": None, "e": "1/0", "f": "", "g": "a=b", "model": "1"}
    target = tmp_path / "made"
    code = f"__import__('pathlib').Path({str(target)!r}).touch()"
    for given in ({"config_dict": {"text_encoder": code}}, {"argv": [f"--text_encoder={code}"]}):
        assert DPPMGConfig(**given)["text_encoder"] == code
    with pytest.raises(ConfigError):
        parse_arguments([f"--a=!!python/object/apply:pathlib.Path.touch ['{target}']"])
    assert not target.exists()


@pytest.mark.parametrize(
    "argv", [["epochs=1"], ["--epochs"], ["--epochs", "1"], ["--=1"], ["--epochs=1", "--epochs=2"]]
)
def test_arguments_of_another_form(argv):
    with pytest.raises(ConfigError, match=r"--key=value|given twice"):
        parse_arguments(argv)


def test_other_models_keep_their_own_keys():
    macrid, diffusion = DPPMGConfig("MacridVAE"), DPPMGConfig("DiffRec")
    assert macrid["tau"] == 0.1
    assert diffusion["sampling_steps"] == 0  # not a value that our key of this name may have
    assert DPPMGConfig("LightGCN")["n_layers"] == 2
    bpr = DPPMGConfig("BPR")
    assert bpr["tau"] is None
    assert bpr["learning_rate"] == 0.001
    assert bpr["eval_args"]["order"] == "TO"
    assert DPPMGConfig("ENMF", argv=["--negative_weight=0.5"])["negative_weight"] == 0.5  # its default is 10


def test_sequential_models_get_what_they_need():
    found = DPPMGConfig("SASRec")
    assert found["train_neg_sample_args"]["distribution"] == "none"
    assert found["eval_batch_size"] == 4096


def test_gpu_is_not_used_against_the_word_of_the_user():
    assert DPPMGConfig(argv=["--use_gpu=false"])["device"].type == "cpu"


def test_empty_switches_off_what_may_be_empty(data_path):
    found = config(data_path, "--image_field=~")
    assert found.settings.image_field is None
    assert group_of(ContentSettings, found).image_field is None


def test_groups(data_path):
    assert group_of(PreferenceSettings, {"tau": 0.5}).tau == 0.5
    assert group_of(PreferenceSettings, config(data_path, "--knn_k=4")).knn_k == 4
    with pytest.raises(ConfigError, match="'tau': -1"):
        group_of(PreferenceSettings, {"tau": -1})


def test_nothing_given_is_changed():
    given = {"load_col": {"inter": ["user_id", "item_id"]}, "eval_args": {"order": "TO"}}
    before = copy.deepcopy(given)
    DPPMGConfig("BPR", config_dict=given)
    assert given == before


def test_the_example_gives_way_to_a_folder_of_that_name(tmp_path):
    assert (
        Path(DPPMGConfig("BPR", config_dict={"data_path": str(tmp_path)})["data_path"]).parent.name == "dataset_example"
    )
    (tmp_path / "ml-100k").mkdir()
    with pytest.raises(DataError, match=r"ml-100k\.inter"):
        DPPMGConfig("BPR", config_dict={"data_path": str(tmp_path)})
    (tmp_path / "ml-100k" / "ml-100k.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n1\t2\t3\n")
    assert DPPMGConfig("BPR", config_dict={"data_path": str(tmp_path)})["data_path"] == str(tmp_path / "ml-100k")


def test_numbers_are_read_as_recbole_reads_them():
    assert [keys.parse(text) for text in ("1e-3", "-2.5e+1", "1E5", ".5", "7", "1.2.3")] == [
        1e-3,
        -25,
        1e5,
        0.5,
        7,
        "1.2.3",
    ]
    assert yaml.safe_load("1e-3") == "1e-3"  # and PyYAML is as it was


def test_describe():
    assert keys.describe("tau").splitlines()[:2] == [
        "tau: temperature of the softmax ranking loss", "  may be: a number > 0",
    ]  # fmt: skip
    assert f"{keys.defaults('DPPMG', '')['tau']} in properties/model/DPPMG.yaml" in keys.describe("tau")
    assert "tuning" not in keys.describe("tau") and "preset" not in keys.describe("reward_steps")  # no defaults
    assert "The number of training epochs" in keys.describe("epochs")
    assert "order: one of RO, TO" in keys.describe("eval_args")
    assert "MacridVAE" in keys.describe("tau")
    for key in keys.recbole_keys():
        keys.describe(key)
    with pytest.raises(ConfigError, match="embedding_size"):
        keys.describe("emebdding_size")
