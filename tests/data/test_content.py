import pytest

from recbole_dppmg.data.content import read_items
from recbole_dppmg.errors import ConfigError, DataError
from recbole_dppmg.settings import ContentSettings

HEADER = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"


def write(tmp_path, *rows, header=HEADER):
    path = tmp_path / "tiny.item"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_titles_read_as_a_person_writes_them(tmp_path):
    path = write(tmp_path, "12\tUsual Suspects, The\t1995\tCrime Thriller", "5\tHeat (1995)\t\tAction")
    suspects, heat = read_items(path, ["12", "5"], ContentSettings())
    assert (suspects.title, suspects.year, suspects.attributes) == ("The Usual Suspects", 1995, ("Crime", "Thriller"))
    assert suspects.text == "The Usual Suspects (1995). Crime, Thriller."
    assert (heat.title, heat.year) == ("Heat", 1995)


@pytest.mark.parametrize("title", ["NA", "None", "null", '"Heart" of Stone', "<script>alert(1)</script>"])
def test_awkward_titles_survive(tmp_path, title):
    path = write(tmp_path, f"1\t{title}\t1999\tDrama")
    assert read_items(path, ["1"], ContentSettings())[0].title == title


def test_ids_without_a_row_and_files_that_are_absent_give_empty_items(tmp_path):
    path = write(tmp_path, "1\tHeat\t1995\tAction")
    assert read_items(path, ["[PAD]", "1"], ContentSettings())[0].text == ""
    assert read_items(tmp_path / "none.item", ["1"], ContentSettings())[0].text == ""


def test_a_short_row_is_named(tmp_path):
    with pytest.raises(DataError, match="row 3"):
        read_items(write(tmp_path, "1\tHeat\t1995\tAction", "2\tUp"), ["1"], ContentSettings())


def test_a_missing_id_column_is_named(tmp_path):
    with pytest.raises(DataError, match="item_id"):
        read_items(write(tmp_path, header="id:token\ttitle:token_seq"), ["1"], ContentSettings())


def test_a_missing_column_names_the_key_and_the_columns(tmp_path):
    path = write(tmp_path, "1\tHeat\t1995\tAction")
    with pytest.raises(ConfigError, match="title_field.*headline.*movie_title"):
        read_items(path, ["1"], ContentSettings(title_field="headline"))


def test_text_of_an_unknown_dataset_is_every_token_seq(tmp_path):
    header = "item_id:token\ttitle:token_seq\tprice:float\toverview:token_seq"
    path = write(tmp_path, "1\tHeat\t3\tA thief and a detective.", header=header)
    assert read_items(path, ["1"], ContentSettings())[0].text == "Heat. A thief and a detective."
