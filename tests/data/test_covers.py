import numpy as np
import pytest

from recbole_dppmg.data.covers import Cover, draw, ensure_covers, genre_of, pattern_of, plan_covers
from recbole_dppmg.data.icons import icons, picture
from recbole_dppmg.data.palettes import GENRES, PALETTES
from recbole_dppmg.types import Item

FILMS = [
    Item("1", "The Deer Hunter", "", ("Drama", "War"), 1978),
    Item("2", "Jumanji", "", ("Adventure", "Children's"), 1995),
    Item("3", "Bananas", "", ("Comedy",), 1971),
    Item("4", "Etz Hadomim Tafus", "", ("Horror",), None),
]


def test_every_name_in_the_palettes_has_an_icon_and_a_picture():
    for genre in GENRES.values():
        assert set(genre.palettes) <= PALETTES.keys()
        assert len(genre.icons) > 1
        for name in genre.icons:
            assert np.asarray(picture(name, 32))[..., 3].max() > 200


def test_the_table_has_no_name_twice():
    assert len({icon.hexcode for icon in icons().values()}) == len(icons()) > 800


def test_a_title_that_names_a_thing_shows_it_and_any_other_shows_its_genre():
    plans = plan_covers(FILMS)
    assert plans[0].main == "deer" and plans[2].main == "banana"
    assert plans[3].main in GENRES["horror"].icons
    assert [p.palette in genre_of(f.attributes).palettes for p, f in zip(plans, FILMS, strict=True)] == [True] * 4
    assert [p.pattern for p in plans] == ["rays", "disc", "rays", "disc"]
    assert all(p.main != p.second for p in plans)


def test_an_unknown_genre_always_gets_the_same_look():
    assert genre_of(["Gardening"]) == genre_of(["gardening"]) in GENRES.values()
    assert genre_of([]) == GENRES["drama"]
    assert pattern_of(1955) == "frame" and pattern_of(1985) == "stripes"


@pytest.mark.parametrize("pattern", ["frame", "rays", "stripes", "disc"])
def test_a_cover_shows_its_palette_its_pattern_and_both_icons(pattern):
    cover = Cover("deer", "dove", "steel blue", pattern)
    image = np.asarray(draw(cover)).astype(int)
    assert image.shape == (128, 128, 3)
    flat = {tuple(pixel) for pixel in image.reshape(-1, 3)}
    assert PALETTES["steel blue"][2] in flat
    for other in (Cover("lion", "dove", "steel blue", pattern), Cover("deer", "bomb", "steel blue", pattern)):
        assert np.abs(np.asarray(draw(other)) - image).sum() > 0


def test_covers_are_drawn_once_and_the_same_everywhere(tmp_path):
    paths = ensure_covers(FILMS, tmp_path / "a")
    before = {path: path.stat().st_mtime_ns for path in paths.values()}
    assert ensure_covers(FILMS, tmp_path / "a") == paths
    assert {path: path.stat().st_mtime_ns for path in paths.values()} == before
    alone = ensure_covers(FILMS[2:3], tmp_path / "b")
    assert alone["3"].read_bytes() == paths["3"].read_bytes()
