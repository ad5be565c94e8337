import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from preference_data import prepare

from recbole_dppmg.data.dataset import DPPMGDataset
from recbole_dppmg.data.given import given_features
from recbole_dppmg.errors import DataError

IDS = ["[PAD]", "b", "a", "zz"]


def write(folder, table, index="item_id,row\na,0\nb,1\nc,2\n"):
    np.save(folder / "f.npy", table)
    (folder / "index.csv").write_text(index)
    return folder / "f.npy", folder / "index.csv"


def test_rows_follow_the_ids_and_absent_ones_are_told(tmp_path):
    table = np.arange(6, dtype=np.float64).reshape(3, 2)
    features, present = given_features(*write(tmp_path, table), IDS)
    assert present.tolist() == [False, True, True, False]
    assert features.dtype == torch.float32
    assert features.tolist() == [[0, 0], [2, 3], [0, 1], [0, 0]]
    columns = {"item_id": ["a", "b", "c"], "features": table.tolist()}
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    again, there = given_features(tmp_path / "f.parquet", None, IDS)
    assert torch.equal(again, features) and torch.equal(there, present)


@pytest.mark.parametrize(
    ("table", "index", "told"),
    [
        (np.ones((3, 2)), "item_id,row\na,0\nb,7\n", "'b' has row 7"),
        (np.ones((3, 2)), "item_id,row\na,0\na,1\n", "'a' is repeated"),
        (np.ones((3, 2)), "item,row\na,0\n", "expected the columns item_id and row"),
        (np.ones((3, 2)), "item_id,row\nq,0\n", "none of the dataset's"),
        (np.ones(3), "item_id,row\na,0\n", "rows x D"),
        (np.full((3, 2), np.nan), "item_id,row\na,0\nb,1\n", "'b' has a value that is not finite"),
        (np.array([[{}], [{}], [{}]]), "item_id,row\na,0\n", "not a plain .npy"),
    ],
)
def test_faults_are_told_by_file_and_item(tmp_path, table, index, told):
    with pytest.raises(DataError, match=r"f\.npy|index\.csv") as error:
        given_features(*write(tmp_path, table, index), IDS)
    assert told in str(error.value)


def test_a_dataset_takes_given_features_by_its_own_ids(tiny_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, np.arange(320.0).reshape(160, 2), "item_id,row\n" + "".join(f"{n},{n}\n" for n in range(160)))
    keys = {"text_features": str(tmp_path / "f.npy"), "feature_index": str(tmp_path / "index.csv")}
    dataset = DPPMGDataset(prepare(tiny_path, **keys).config)
    features, present = dataset.item_features("text")
    assert present.sum() == dataset.item_num - 1
    token = int(dataset.field2id_token["item_id"][5])
    assert features[5].tolist() == [2 * token, 2 * token + 1]
