"""Derive `recbole_dppmg/data/icons.tsv` from the table in the npm package `openmoji` (CC BY-SA 4.0).

npm pack openmoji@17.0.0 && tar xzf openmoji-17.0.0.tgz
python tools/make_icon_table.py package/data/openmoji.json recbole_dppmg/data/icons.tsv
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

#: Subgroups whose icons can stand on a cover: things, animals, places, people, weather, food.
KEPT = {
    "activities": {"arts-crafts", "award-medal", "event", "game", "sport"},
    "animals-nature": None,
    "food-drink": None,
    "objects": None,
    "people-body": {"body-parts", "hands", "family", "person", "person-fantasy", "person-activity", "person-role"}
    | {"person-sport"},
    "smileys-emotion": {"face-costume", "face-hat", "face-glasses", "face-negative", "heart", "emotion"},
    "symbols": {"religion", "other-symbol"},
    "travel-places": {"place-building", "place-geographic", "place-map", "place-other", "place-religious"}
    | {"sky-weather", "transport-air", "transport-ground", "transport-water"},
}
#: OpenMoji's own icons, one by one: many of the rest are logos, signs or real people.
EXTRAS = {
    *("guy fawkes mask", "tardis", "space shuttle", "great pyramid of giza", "eiffel tower", "horse riding"),
    *("atom bomb", "iceberg", "polar explorer", "hal 9000", "lighthouse of alexandria", "volcano eruption", "tsunami"),
    *("avalanche", "wild fire", "surveillance", "virtual reality", "gardener woman", "lighter", "armchair", "microbe"),
    *("spouting-orca", "doe", "pigeon", "macaw", "narwhal", "barista", "dj", "windsurfing", "drunk person"),
    *("motorbike helmet", "colossus of rhodes", "temple of artemis at ephesus", "stairway", "foggy mountain", "drone"),
}
#: A person of one sex where the same icon exists without, near copies, letters and signs.
DROPPED = re.compile(
    r"facing right|^(man|woman|men|women)( |:)|: |, |button|symbol|sign$|mark|medium|phase|quarter|kiss|oncoming"
    r"|wheelchair|white cane|breast|pregnant|feeding|steamy|massage|haircut|(notebook|envelope|cloud) with (?!light)"
    r"|inbox|outbox|(bar )?chart |e-mail|clipboard|control knobs|slider|stethoscope|departure|arrival|gibbous"
    r"|(ears?|horse|dog|cat|cow|pig|tiger|rabbit|mouse|monkey|panda) face|small air|behind (small|large|rain)"
    r"|front-facing|(file|card) (folder|index|box)|folder|calendar|paperclip|ruler|pushpin|label|ledger|bookmark"
    r"|mobile phone with|(incoming|receiver)|speaker|loop|asterisk|copyright|registered|badge|circle|check box|sparkle$"
    r"|fast|level|battery|trackball|bubble tea|beverage|mate$|(light blue|grey|white|brown|orange|green|yellow) heart"
    r"|growing|game die|wheel of dharma|revolving|exclamation|mending|(left|right) (speech|anger)|zzz|hundred|sweat"
    r"|dashing|thought|eye in"
    r"|light rail|tram( car)?$|monorail|mountain railway|minibus|trolleybus|suspension|aerial|bus stop|sport utility"
    r"|lorry|kick scooter|rickshaw|motorway|dome|(water polo|handball)|turban|skullcap|veil|mx claus|merperson|goblin"
    r"|nail polish|(green|blue|orange) book|spiral|linked|round|(2nd|3rd) place|tilted right|videocassette|with flash"
    r"|two-hump|(prayer|bikini|briefs|shorts|thong)|one-piece|love hotel|post office|bank$|convenience|japanese"
    r"|playing card|suit$|mahjong|tanabata|pine dec|carp|moon viewing|red envelope|reminder|face with steam|pile of",
    re.IGNORECASE,
)


def main(source: str, target: str) -> None:
    rows = []
    for entry in json.loads(Path(source).read_text(encoding="utf-8")):
        group, subgroup, name = entry["group"], entry["subgroups"], entry["annotation"].lower()
        kept = group in KEPT and (KEPT[group] is None or subgroup in KEPT[group]) and not DROPPED.search(name)
        if entry["skintone"] or not (kept or (group == "extras-openmoji" and name in EXTRAS)):
            continue
        words = [w.strip().lower() for w in f"{entry['tags']},{entry['openmoji_tags']}".split(",")]
        tags = [w for w in dict.fromkeys(words) if w and w != name and w.isascii()][:6]
        rows.append((entry["hexcode"], name, ", ".join(tags), subgroup))
    lines = ["hexcode\tname\ttags\tgroup", *("\t".join(row) for row in rows)]
    Path(target).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(rows)} icons")


if __name__ == "__main__":
    main(*sys.argv[1:])
