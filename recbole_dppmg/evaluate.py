"""The verb `evaluate`: generate for many users, let an independent judge say for whom, and write what was found."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_dppmg.artifacts import write_json, write_text
from recbole_dppmg.bundle import Bundle
from recbole_dppmg.commands import parser_of
from recbole_dppmg.config import DPPMGConfig
from recbole_dppmg.data.features import item_features
from recbole_dppmg.errors import AssetError, BundleError, ConfigError, DataError
from recbole_dppmg.evaluation.generation import Made, Plan, make_plan, produce
from recbole_dppmg.evaluation.hacking import findings
from recbole_dppmg.evaluation.judge import WORDS, Judge, WordEncoder, reader
from recbole_dppmg.evaluation.measures import Measures
from recbole_dppmg.evaluation.section import insert_section, table_in_words
from recbole_dppmg.evaluation.statistics import sign_test, with_intervals
from recbole_dppmg.model.dppmg import DPPMG
from recbole_dppmg.model.joint_space import train_joint_space
from recbole_dppmg.runs import INJECTED, repeat_exactly, set_threads
from recbole_dppmg.trainer.preference import PreferencePhase
from recbole_dppmg.trainer.stock import Data, prepare
from recbole_dppmg.trainer.tracking import Tracker

logger = logging.getLogger(__name__)

#: The image encoder that reads for the judge, by that of the run.
_OTHER = {"efficientnet-lite1": "efficientnet-lite0"}
_IMAGE_ENCODER = "efficientnet-lite1"
_EPOCHS = 40
_APART = 104_729  # the judge's seed is that of the bundle and this


@dataclass(frozen=True)
class Evaluation:
    """Metrics by name, what looks wrong, and what they were measured on."""

    metrics: dict[str, float]
    flags: list[str]
    plan: Plan
    made: Mapping[str, Mapping[str, Made]]
    encoders: Mapping[str, str]


def main(argv: Sequence[str]) -> int:
    """Evaluate a run's bundle; prints a table, adds to the run's `metrics.json` and `report.html`, and keeps what was
    generated in `evaluation/` beside them.

    Raises:
        BundleError: the bundle cannot be read, or is not in the folder of its run.
        ConfigError, DataError: bad arguments, or the dataset is not that of the bundle.
    """
    parser = parser_of("evaluate", "Measure how personal, consistent and true generated texts and images are.")
    parser.add_argument("--pairs", type=int, default=200, help="cards, 20 users for each test item [%(default)s]")
    parser.add_argument("--seed", type=int, help="of the choice of cards, texts and images [that of the bundle]")
    parser.add_argument("--threads", type=int, help="CPU threads [OMP_NUM_THREADS, else all cores]")
    parser.add_argument("--judge_epochs", type=int, default=_EPOCHS, help="the judge's training [%(default)s]")
    parser.add_argument(
        "--judge_text_encoder", default=WORDS, help="what reads texts for the judge; words: TF-IDF [%(default)s]"
    )
    parser.add_argument(
        "--judge_image_encoder", help=f"what reads images for the judge [{_IMAGE_ENCODER}, or lite0 after lite1]"
    )
    given = parser.parse_args(argv)
    for name in ("pairs", "judge_epochs"):
        if getattr(given, name) < 1:
            raise ConfigError(f"evaluate: --{name}={getattr(given, name)}: must be 1 or more")
    set_threads(given.threads)
    repeat_exactly(True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("recbole_dppmg").setLevel(logging.INFO)
    folder = Path(given.bundle)
    if folder.is_dir() and not (folder / "manifest.json").is_file() and (folder / "bundle").is_dir():
        folder = folder / "bundle"
    bundle = Bundle.from_pretrained(folder)
    run = folder.resolve().parent
    if not (run / "config.yaml").is_file():
        raise BundleError(f"{folder}: there is no config.yaml beside the bundle; evaluate it in the folder of its run")
    if not bundle.heads:
        raise BundleError(f"{folder}: the bundle has no generators; train with phase 'injection'")
    seed = bundle.seed if given.seed is None else given.seed
    start = time.perf_counter()
    config = DPPMGConfig(config_file_list=[run / "config.yaml"])
    data = prepare(config)
    _check_same(bundle, data)
    judge = train_judge(config, data, bundle, given.judge_epochs, given.judge_text_encoder, given.judge_image_encoder)
    result = evaluate(bundle, data, judge, given.pairs, seed, folder, run / INJECTED)
    result.metrics["time.evaluate_s"] = round(time.perf_counter() - start, 2)
    write(result, bundle, run)
    print(table_in_words(result.metrics, result.plan.users.shape[1]))
    print(f"judge: texts by {judge.encoders['text']}, images by {judge.encoders['image']}, seed {judge.seed}")
    for flag in result.flags:
        print(f"flag: {flag}")
    print(f"kept in {run / 'evaluation'}")
    return 0


def _check_same(bundle: Bundle, data: Data) -> None:
    users, items = (data.dataset.field2id_token[f] for f in (data.dataset.uid_field, data.dataset.iid_field))
    if list(map(str, users)) != list(bundle.user_ids) or [i.id for i in bundle.items[1:]] != list(map(str, items[1:])):
        raise DataError(
            f"dataset '{data.dataset.dataset_name}' has changed since the bundle was trained: other users or items; "
            f"restore it, or train again"
        )


def interactions(part: Any) -> Tensor:
    """The (user, item) rows of one part of a split, int64 (E, 2)."""
    return torch.stack([part.inter_feat[part.uid_field], part.inter_feat[part.iid_field]], 1)


def train_judge(
    config: DPPMGConfig, data: Data, bundle: Bundle, epochs: int, text_encoder: str, image_encoder: str | None
) -> Judge:
    """An independent preference model, with a joint space of its own where items have both text and image.

    It is DPPMG without a quantizer, from another seed, trained on training and validation interactions for a fixed
    number of epochs, on features of its own encoders.
    """
    seed = bundle.seed + _APART
    encoders = {
        "text": text_encoder,
        "image": image_encoder or _image_encoder(bundle.settings.image_encoder),
    }
    items = bundle.items
    features, readers = {}, {}
    present = torch.tensor([bool(item.text) for item in items])
    if encoders["text"] == WORDS and present.any():
        words = WordEncoder([item.text for item in items if item.text])
        features["text"] = (words.encode([item.text for item in items]), present)
        readers["text"] = words.encode
    for modality in ("text", "image"):
        if modality not in readers and (modality in bundle.heads or modality in bundle.space.modalities):
            own = bundle.settings.model_copy(update={f"{modality}_encoder": encoders[modality]})
            features[modality] = item_features(items, modality, own)
            readers[modality] = reader(modality, encoders[modality])
    train = data.train.dataset
    columns = {
        name: torch.cat([train.inter_feat[name], data.valid.dataset.inter_feat[name]])
        for name in train.inter_feat.columns
    }
    known = train.copy(type(train.inter_feat)(columns))
    nothing = (torch.zeros(len(items), 1), torch.zeros(len(items), dtype=torch.bool))
    known._content = {"items": items, "text": features.get("text", nothing), "image": features.get("image", nothing)}
    config["seed"], config["epochs"] = seed, epochs
    config["quantizer_warmup"] = epochs + 1  # a judge needs no tokens
    logger.info("judge: %d interactions, seed %d, %d epochs, %s", len(interactions(known)), seed, epochs, encoders)
    model = DPPMG(config, known).to(config["device"])
    PreferencePhase(model, config, Tracker()).fit(interactions(known).T.contiguous(), None)
    joint = None
    if len(features) == 2 and (both := features["text"][1] & features["image"][1]).sum() >= 20:
        joint, _ = train_joint_space(
            features["text"][0][both], features["image"][0][both], bundle.settings.joint_epochs, seed
        )
    return Judge(model.space(), joint, readers, features, encoders, seed)


def _image_encoder(of_run: str) -> str:
    """Another image encoder than the run's, where it can be had."""
    from recbole_dppmg.assets import resolve

    other = _OTHER.get(of_run, _IMAGE_ENCODER)
    try:
        resolve(other)
    except AssetError as error:
        logger.warning("judge: reads images with the run's own encoder %s, for there is no other (%s)", of_run, error)
        return of_run
    return other


def evaluate(
    bundle: Bundle, data: Data, judge: Judge, pairs: int, seed: int, folder: Path, injected: Path | None = None
) -> Evaluation:
    """Generate under every condition, measure, and look for hacking.

    Args:
        folder: the bundle's, whose heads are read again after those before the reward phase were.
        injected: the folder of the heads before the reward phase; there may be none.
    """
    known = torch.cat([interactions(part.dataset) for part in (data.train, data.valid)])
    test = interactions(data.test.dataset)
    plan = make_plan(bundle, known, test, pairs, seed)
    before = injected if injected is not None and injected.is_dir() else None
    made = {m: produce(bundle, plan, m, seed, folder / "heads", before) for m in bundle.heads}
    settings = bundle.settings
    readable = [m for m in made if not getattr(settings, f"{m}_features")]
    readers = {m: reader(m, getattr(settings, f"{m}_encoder")) for m in readable}
    features = {m: item_features(bundle.items, m, settings) for m in readable}
    joint = bundle.joint
    if joint is None and len(features) == 2:
        both = features["text"][1] & features["image"][1]
        joint, _ = train_joint_space(
            features["text"][0][both], features["image"][0][both], settings.joint_epochs, bundle.seed
        )
    cards = torch.stack([plan.users, plan.items.unsqueeze(1).expand_as(plan.users)], -1).flatten(0, 1)
    measures = Measures(bundle, plan, made, judge, readers, joint, features, seed, data.dataset.reviews(cards))
    metrics = summarise(measures.samples(), seed) | measures.scalars()
    metrics |= {"evaluation.pairs": float(plan.users.numel()), "evaluation.users": float(len(plan.users.unique()))}
    for m in made:
        metrics |= with_intervals({f"judge.{m}.auc": judge.auc(m, test, seed)}, seed)
    return Evaluation(metrics, findings(metrics, plan.users.shape[1]), plan, made, judge.encoders)


def summarise(samples: Mapping[str, Tensor], seed: int) -> dict[str, float]:
    """Means with intervals of every sample; where there are `own` and `before`, also `after`, which is own, and the
    paired `gain.<measure>`; of the judge's gaps also `.mean`, which is own, and `.sign_p` of the sign test."""
    more: dict[str, Tensor] = {}
    for name, values in samples.items():
        measure, _, condition = name.rpartition(".")
        if condition == "before":
            more |= {
                f"{measure}.after": samples[f"{measure}.own"],
                f"gain.{measure}": samples[f"{measure}.own"] - values,
            }
        if condition == "own" and measure.endswith(".gap"):
            more[f"{measure}.mean"] = values
    found = with_intervals({**samples, **more}, seed)
    gaps = {name: values for name, values in samples.items() if name.endswith(".gap.own")}
    return found | {f"{name.removesuffix('.own')}.sign_p": sign_test(values) for name, values in gaps.items()}


def write(result: Evaluation, bundle: Bundle, run: Path) -> None:
    """`evaluation/` with every card, `metrics.json` with the new metrics, and the section in `report.html`."""
    with tempfile.TemporaryDirectory(dir=run, prefix=".evaluation-") as scratch:
        whole = Path(scratch) / "evaluation"
        whole.mkdir()
        write_text(whole / "cards.jsonl", "".join(_lines(result, bundle, whole)))
        write_json(whole / "metrics.json", dict(sorted(result.metrics.items())))
        shutil.rmtree(run / "evaluation", ignore_errors=True)
        whole.rename(run / "evaluation")
    path = run / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = {name: value for name, value in metrics.items() if not name.startswith(_OWNED)}
    write_json(path, dict(sorted((kept | result.metrics).items())))
    if (run / "report.html").is_file():
        group, examples = result.plan.users.shape[1], _examples(result, bundle)
        insert_section(run / "report.html", result.metrics, group, result.flags, result.encoders, examples)


#: What an earlier evaluation wrote into `metrics.json`.
_OWNED = (
    "judge.", "gain.", "consistency.", "personalization.", "fidelity.", "diversity.", "quality.", "same.", "alike.",
    "failed.", "evaluation.",
)  # fmt: skip


def _lines(result: Evaluation, bundle: Bundle, folder: Path) -> list[str]:
    lines = []
    for modality, conditions in result.made.items():
        for condition, made in conditions.items():
            names: list[str] = []
            for n, content in enumerate(made.contents):
                names.append(f"images/{condition}-{n:04}.png" if modality == "image" else content)
                if modality == "image":
                    (folder / "images").mkdir(exist_ok=True)
                    content.save(folder / names[-1], format="PNG")
            for item, users, row in zip(
                result.plan.items.tolist(), result.plan.users.tolist(), made.index.tolist(), strict=True
            ):
                for user, n in zip(users, row, strict=True):
                    card = {
                        "condition": condition,
                        "item": bundle.items[item].id,
                        "title": bundle.items[item].title,
                        "user": bundle.user_ids[user],
                        modality: names[n],
                        "error": made.errors[n],
                    }
                    lines.append(json.dumps(card, ensure_ascii=False) + "\n")
    return lines


def _examples(result: Evaluation, bundle: Bundle, items: int = 3, users: int = 8) -> list[dict[str, Any]]:
    """The first items of the plan for a few users, under the conditions that the report shows."""
    found = []
    for n, item in enumerate(result.plan.items[:items].tolist()):
        rows = []
        for condition in ("own", "before", "none", "random", "history"):
            cells = []
            for k in range(min(users, result.plan.users.shape[1])):
                cell: dict[str, Any] = {"user": bundle.user_ids[int(result.plan.users[n, k])]}
                for modality, conditions in result.made.items():
                    if condition in conditions:
                        made = conditions[condition]
                        place = int(made.index[n, k])
                        cell[modality] = made.contents[place]
                cells.append(cell)
            if any(len(cell) > 1 for cell in cells):
                rows.append((condition, cells))
        found.append({"title": bundle.items[item].title, "rows": rows})
    return found
