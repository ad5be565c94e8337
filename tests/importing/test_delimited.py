import pandas as pd
import pytest
from PIL import Image

from recbole_dppmg.cli import main
from recbole_dppmg.config import DPPMGConfig
from recbole_dppmg.data.content import read_items
from recbole_dppmg.data.images import locate_images
from recbole_dppmg.importing.tables import NAMES, choose_columns, times
from recbole_dppmg.settings import ContentSettings, group_of


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ["userId,movieId,rating,Date"]
    rows += [f"u{n % 7},{n % 11},{n % 5 + 1},2024-01-{n % 28 + 1:02d}T12:00:00Z" for n in range(77)]
    (tmp_path / "ratings.csv").write_text("\n".join(rows) + "\n")
    rows = ["movieId;Title;Genres;poster;note", '0;"Heat; or\nfire";Crime|Drama;a b.png;x', "1;NA;['War', 'Drama'];;"]
    rows += [f"{n};Film {n};Drama;gone.png;" for n in range(2, 10)] + ["9;Again;Drama;;"]
    (tmp_path / "movies.csv").write_bytes("\ufeff".encode() + "\n".join(rows).encode())
    (tmp_path / "posters").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "posters" / "a b.png")
    return tmp_path


ARGUMENTS = ["import", "csv", "--interactions=ratings.csv", "--items=movies.csv", "--images=posters", "--name=mine"]


def test_guesses_are_shown_and_a_run_finds_everything(here, capsys):
    assert main(ARGUMENTS) == 0
    said = capsys.readouterr().out
    assert "ratings.csv: user = userId; item = movieId; rating = rating; time = Date" in said
    assert "movies.csv: item = movieId; title = Title; image = poster; text = Genres; not used: note" in said
    assert "7 users, 11 items, 77 interactions" in said
    assert "1 items with interactions have no row among the items, e.g. '10'" in said
    assert "1 rows repeat an item, e.g. '9'" in said
    assert {path.name for path in (here / "dataset" / "mine").iterdir()} == {"mine.inter", "mine.item", "mine.yaml"}
    (command,) = [line for line in said.splitlines() if line.startswith("train on it: run_dppmg.py ")]
    config = DPPMGConfig(argv=command.split()[4:])
    settings = group_of(ContentSettings, config)
    items = read_items(here / "dataset/mine/mine.item", ["0", "1", "9", "10"], settings)
    assert [item.title for item in items] == ["Heat; or fire", "NA", "Film 9", ""]
    assert items[0].text == "Heat; or fire. Crime, Drama." and items[1].attributes == ("War", "Drama")
    found, faults = locate_images(items, here / "dataset/mine", settings)
    assert [bool(item.image) for item in found] == [True, False, False, False]
    assert [(fault.item, fault.reason) for fault in faults] == [("9", "no such file")]
    lines = (here / "dataset/mine/mine.inter").read_text().splitlines()
    assert lines[:2] == ["user_id:token\titem_id:token\trating:float\ttimestamp:float", "u0\t0\t1\t1704110400"]
    assert len(lines) == 78


def test_columns_can_be_given(here, capsys):
    more = ["--user-column=movieId", "--item-column=userId", "--rating-column=-", "--time-column=-", "--items="]
    assert main([*ARGUMENTS[:3], "--name=turned", *more[:4], "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "user = movieId; item = userId; not used: rating, Date" in said and "nothing was written" in said
    assert not (here / "dataset").exists()
    assert main([*ARGUMENTS[:3], "--name=turned", *more[:4]]) == 0
    lines = (here / "dataset/turned/turned.inter").read_text().splitlines()
    assert lines[:2] == ["user_id:token\titem_id:token", "0\tu0"]
    assert (
        DPPMGConfig(argv=["--dataset=turned", "--config_files=dataset/turned/turned.yaml"])["eval_args"]["order"]
        == "RO"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--user-column=userid"], "--user-column=userid: ratings.csv has no such column; nearest: userId"),
        (["--text-columns=Genre"], "no column 'Genre'; nearest: Genres"),
        (["--interactions=none.csv"], "none.csv: no such file"),
        (["--interactions=bare.csv"], "bare.csv: which column holds the user? give --user-column, one of who, rating"),
        (["--interactions=ragged.csv"], "ragged.csv: cannot be read as a table"),
        (["--interactions=latin.csv"], "latin.csv: is not UTF-8"),
        (["--interactions=word.csv"], "word.csv: row 3, column 'rating': 'good' is not a number"),
        (["--interactions=when.csv"], "when.csv: row 2, column 'time': 'soon' is not a time"),
        (["--interactions=gap.csv"], "gap.csv: row 3 has no user_id"),
        (["--interactions=empty.csv"], "empty.csv"),
        (["--images=nowhere"], "--images=nowhere: is no folder"),
        (["--images=posters", "--image-column=-"], "no file is named by an item id, e.g. 'a b.png'"),
        (["--name=../x"], "--name=../x: letters, digits"),
        (["--name=taken"], "taken: is already there"),
        (["--unknown"], "import: unrecognized arguments: --unknown"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_left(here, capsys, change, said):
    for name, text in {
        "bare": "who,rating\na,1\n", "ragged": "user,item\na,b\nc,d,e,f\n", "gap": "user,item\na,b\n,c\n",
        "word": "user,item,rating\na,b,1\nc,d,good\n", "when": "user,item,time\na,b,soon\n", "empty": "",
    }.items():  # fmt: skip
        (here / f"{name}.csv").write_text(text)
    (here / "latin.csv").write_bytes("user,item\na,\xe9\n".encode("latin-1"))
    (here / "dataset" / "taken").mkdir(parents=True)
    given = dict(argument.split("=") for argument in ARGUMENTS[2:])
    given |= dict(argument.partition("=")[::2] for argument in change)
    assert main([*ARGUMENTS[:2], *(f"{key}={value}" if value else key for key, value in given.items())]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert [path.name for path in (here / "dataset").iterdir()] == ["taken"]


@pytest.mark.parametrize(
    "cells",
    [
        ["1700000000", "5"],
        ["1700000000000", "5000"],
        ["1700000000000000000", "5000000000"],
        ["2023-11-14 22:13:20", "1970-01-01T00:00:05+00:00"],
    ],
)
def test_times_become_seconds(tmp_path, cells):
    assert times(tmp_path, "t", pd.Series(cells)).tolist() == ["1700000000", "5"]


def test_a_column_holds_one_thing(tmp_path):
    found = choose_columns(tmp_path, ["id", "Item ID", "User"], ("item", "user"), ("item", "user"), {})
    assert found == {"item": "Item ID", "user": "User"}
    assert all(name == name.lower() and name.isalnum() for names in NAMES.values() for name in names)
