import numpy as np
import pytest
import torch

from recbole_dppmg.cli import main
from recbole_dppmg.config import DPPMGConfig
from recbole_dppmg.trainer.stock import prepare

USERS, ITEMS = 12, 30


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder as MMRec's preparation leaves it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "baby"
    folder.mkdir()
    rows = ["userID\titemID\trating\ttimestamp\tx_label"]
    for user in range(USERS):
        rows += [f"{user}\t{(user * 5 + n * 7) % ITEMS}\t5.0\t{n}\t{max(0, n - 7)}" for n in range(10)]
    (folder / "baby.inter").write_text("\n".join(rows) + "\n")
    generator = np.random.default_rng(0)
    np.save(folder / "text_feat.npy", generator.normal(size=(ITEMS, 6)))
    np.save(folder / "image_feat.npy", generator.normal(size=(ITEMS, 8)).astype(np.float32))
    (folder / "i_id_mapping.csv").write_text("asin\titemID\n" + "".join(f"B{n:03d}\t{n}\n" for n in range(ITEMS)))
    return folder


def test_split_features_and_ids_are_those_of_the_source(source, tmp_path, capsys):
    assert main(["import", "mmrec", str(source)]) == 0
    said = capsys.readouterr().out
    assert "12 users, 30 items, interactions 96 train, 12 valid, 12 test" in said
    (command,) = [line for line in said.splitlines() if line.startswith("train on it: ")]
    config = DPPMGConfig(argv=[*command.split()[4:], "--state=ERROR"])
    assert config.settings.train_phases == ["preference"]
    data = prepare(config)
    assert [len(part.dataset.inter_feat) for part in (data.train, data.valid, data.test)] == [96, 12, 12]
    tokens = data.dataset.field2id_token["item_id"]
    assert set(tokens[1:]) == {f"B{n:03d}" for n in range(ITEMS)}
    for modality in ("text", "image"):
        expected = torch.from_numpy(np.load(source / f"{modality}_feat.npy")).float()
        features, present = data.dataset.item_features(modality)
        assert present[1:].all() and not present[0]
        assert torch.equal(features[1:], expected[[int(token[1:]) for token in tokens[1:]]])
    row = (tmp_path / "dataset/baby/baby.test.inter").read_text().splitlines()[1]
    assert row.split("\t")[:2] == ["0", f"B{9 * 7 % ITEMS:03d}"]


def test_one_modality_and_no_original_ids(source, tmp_path, capsys):
    (source / "image_feat.npy").unlink()
    (source / "i_id_mapping.csv").unlink()
    assert main(["import", "mmrec", str(source), "--name=other", f"--output={tmp_path / 'sets'}"]) == 0
    assert "image: no image_feat.npy, so no image tokens" in capsys.readouterr().out
    assert (tmp_path / "sets/other/item_index.csv").read_text().splitlines()[:2] == ["item_id,row", '"0",0']
    assert "image_features" not in (tmp_path / "sets/other/other.yaml").read_text()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no split", "has no column x_label"),
        ("label", "row 5: x_label is '7'"),
        ("short", "text_feat.npy: has 12 rows, but item 29 has interactions"),
        ("pickle", "text_feat.npy: not a plain .npy array"),
        ("no .inter", "expected one .inter file, found none"),
        ("mapping", "i_id_mapping.csv: expected two columns"),
        ("repeated", "i_id_mapping.csv: an id or a number is repeated"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_left(source, tmp_path, capsys, fault, said):
    inter = source / "baby.inter"
    lines = inter.read_text().splitlines()
    if fault == "no split":
        inter.write_text("\n".join(line.rpartition("\t")[0] for line in lines))
    elif fault == "label":
        lines[4] = lines[4][:-1] + "7"
        inter.write_text("\n".join(lines))
    elif fault == "short":
        np.save(source / "text_feat.npy", np.zeros((12, 3)))
    elif fault == "pickle":
        np.save(source / "text_feat.npy", np.array([{}] * ITEMS, dtype=object), allow_pickle=True)
    elif fault == "no .inter":
        inter.unlink()
    else:
        (source / "i_id_mapping.csv").write_text("asin\n1\n" if fault == "mapping" else "asin\titemID\nB\t0\nB\t1\n")
    assert main(["import", "mmrec", str(source)]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "dataset").exists()
