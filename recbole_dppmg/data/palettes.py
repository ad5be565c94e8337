"""Colours and icons of genres, for drawn covers."""

from __future__ import annotations

from typing import NamedTuple

Colour = tuple[int, int, int]

#: Name, as a caption says it -> colour at the top, at the bottom, and of the pattern.
PALETTES: dict[str, tuple[Colour, Colour, Colour]] = {
    "black and red": ((24, 16, 22), (74, 14, 24), (128, 26, 34)),
    "black and green": ((12, 24, 22), (18, 56, 44), (38, 100, 72)),
    "dark purple": ((34, 20, 56), (66, 34, 92), (104, 62, 136)),
    "orange and yellow": ((242, 118, 34), (252, 186, 60), (255, 222, 130)),
    "red and orange": ((178, 34, 34), (238, 108, 44), (250, 164, 82)),
    "steel blue": ((36, 62, 92), (76, 112, 148), (128, 162, 194)),
    "navy and gold": ((18, 28, 66), (38, 52, 104), (214, 172, 72)),
    "sky blue": ((88, 172, 230), (172, 218, 246), (226, 243, 252)),
    "mint green": ((104, 196, 164), (176, 228, 202), (228, 246, 236)),
    "lime and yellow": ((150, 200, 62), (226, 224, 96), (248, 246, 176)),
    "pink and rose": ((232, 104, 140), (248, 172, 186), (254, 220, 224)),
    "burgundy and cream": ((110, 28, 50), (152, 62, 78), (240, 218, 190)),
    "teal and cyan": ((8, 88, 104), (24, 150, 162), (108, 212, 212)),
    "violet and magenta": ((92, 44, 150), (186, 66, 168), (232, 132, 204)),
    "sand and brown": ((134, 86, 48), (206, 160, 102), (238, 208, 156)),
    "olive and khaki": ((72, 78, 44), (128, 128, 78), (182, 176, 124)),
    "grey and white": ((90, 92, 98), (156, 158, 164), (226, 227, 230)),
    "charcoal": ((30, 32, 36), (70, 72, 78), (118, 120, 128)),
    "beige and brown": ((188, 164, 136), (224, 204, 176), (246, 234, 214)),
    "forest green": ((24, 78, 48), (64, 132, 76), (136, 188, 118)),
    "deep blue": ((14, 34, 110), (34, 78, 182), (92, 144, 232)),
    "white and blue": ((214, 228, 244), (160, 190, 226), (250, 252, 255)),
}


class Genre(NamedTuple):
    """The palettes and icons that stand for a genre."""

    palettes: tuple[str, ...]
    icons: tuple[str, ...]


#: From the most to the least telling, since most films have several.
GENRES: dict[str, Genre] = {
    "horror": Genre(
        ("black and red", "black and green"),
        (
            "ghost",
            "vampire",
            "zombie",
            "skull",
            "bat",
            "spider web",
            "coffin",
            "jack-o-lantern",
            "headstone",
            "drop of blood",
        ),
    ),
    "western": Genre(
        ("sand and brown",), ("cowboy hat face", "horse", "cactus", "horse riding", "desert", "bison", "wood", "eagle")
    ),
    "musical": Genre(
        ("violet and magenta",),
        (
            "musical notes",
            "microphone",
            "ballet dancer",
            "top hat",
            "saxophone",
            "mirror ball",
            "musical keyboard",
            "trumpet",
        ),
    ),
    "war": Genre(
        ("olive and khaki",),
        ("military helmet", "military medal", "bomb", "dove", "helicopter", "parachute", "crossed swords", "shield"),
    ),
    "sci-fi": Genre(
        ("teal and cyan", "deep blue"),
        (
            "alien",
            "rocket",
            "flying saucer",
            "robot",
            "ringed planet",
            "astronaut",
            "satellite",
            "telescope",
            "alien monster",
            "dna",
        ),
    ),
    "animation": Genre(
        ("lime and yellow", "sky blue"),
        ("teddy bear", "crayon", "artist palette", "balloon", "rainbow", "clown face", "magic wand", "unicorn"),
    ),
    "fantasy": Genre(
        ("dark purple",), ("dragon", "mage", "castle", "fairy", "crystal ball", "unicorn", "genie", "elf")
    ),
    "film-noir": Genre(
        ("charcoal",),
        (
            "detective",
            "cigarette",
            "bridge at night",
            "saxophone",
            "black cat",
            "tumbler glass",
            "magnifying glass tilted left",
        ),
    ),
    "children's": Genre(
        ("sky blue", "lime and yellow"),
        ("balloon", "kite", "carousel horse", "dog", "child", "ice cream", "boy", "girl", "lollipop", "baby chick"),
    ),
    "documentary": Genre(
        ("grey and white",),
        (
            "movie camera",
            "newspaper",
            "studio microphone",
            "globe showing americas",
            "film projector",
            "books",
            "microscope",
        ),
    ),
    "mystery": Genre(
        ("dark purple", "charcoal"),
        ("magnifying glass tilted left", "key", "disguised face", "candle", "eyes", "detective", "scroll"),
    ),
    "crime": Genre(
        ("steel blue", "charcoal"),
        ("police car", "police officer", "money bag", "dagger", "police car light", "locked", "detective", "chains"),
    ),
    "action": Genre(
        ("red and orange",),
        ("collision", "fire", "racing car", "motorcycle", "helicopter", "bomb", "boxing glove", "ninja", "superhero"),
    ),
    "adventure": Genre(
        ("forest green", "teal and cyan"),
        ("compass", "world map", "mountain", "sailboat", "treasure chest", "tent", "desert island", "parachute"),
    ),
    "thriller": Genre(
        ("navy and gold", "steel blue"),
        ("eye", "key", "dagger", "high voltage", "locked with key", "flashlight", "telephone"),
    ),
    "romance": Genre(
        ("pink and rose", "burgundy and cream"),
        (
            "red heart",
            "rose",
            "couple with heart",
            "bouquet",
            "love letter",
            "ring",
            "wine glass",
            "two hearts",
            "tulip",
        ),
    ),
    "comedy": Genre(
        ("orange and yellow", "mint green"),
        (
            "clown face",
            "party popper",
            "partying face",
            "banana",
            "performing arts",
            "joker",
            "beer mug",
            "smiling face with sunglasses",
            "popcorn",
        ),
    ),
    "drama": Genre(
        ("beige and brown", "white and blue", "burgundy and cream"),
        (
            "performing arts",
            "broken heart",
            "wilted flower",
            "candle",
            "old woman",
            "window",
            "fallen leaf",
            "house",
            "umbrella",
            "door",
        ),
    ),
}
