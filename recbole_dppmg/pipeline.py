"""One run from the configuration to the report: data, preference, generators, bundle, ranking, cards."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from recbole.utils import init_seed

from recbole_dppmg.assets import resolve
from recbole_dppmg.bundle import Bundle
from recbole_dppmg.config import DPPMGConfig, resolved
from recbole_dppmg.data.images import DRAWN
from recbole_dppmg.evaluation.cards import choose_users, make_cards, same_item_cards
from recbole_dppmg.evaluation.report import model_card, write_report
from recbole_dppmg.generators.base import Catalogue, build_head
from recbole_dppmg.keys import properties_dir, read_yaml
from recbole_dppmg.model.dppmg import DPPMG
from recbole_dppmg.model.glossary import build_glossary
from recbole_dppmg.plan import Plan, make_plan
from recbole_dppmg.runs import INJECTED, Run, open_run, repeat_exactly, set_threads
from recbole_dppmg.settings import Settings
from recbole_dppmg.trainer.reward_function import RewardFunction
from recbole_dppmg.trainer.state import RunState
from recbole_dppmg.trainer.stock import Data, in_folder, prepare, train_stock
from recbole_dppmg.trainer.trainer import DPPMGTrainer
from recbole_dppmg.types import Item

logger = logging.getLogger(__name__)

_RECENT = 20
_SAME_ITEM = 8  # users whose cards of one item stand side by side in the report
_DRAWN = (
    "This catalogue has no images of its own: its covers are drawn from title, genres and year with icons of OpenMoji "
    "(CC BY-SA 4.0)."
)
_LOCAL = ("causal_lm", "diffusion")
RESUME = "--resume"
#: Keys of DPPMG's own file that hold for the models beside it too.
_SHARED = {"epochs"}


def run_from_arguments(argv: Sequence[str]) -> Path:
    """The whole run of `--key=value` arguments; returns the path of its report.

    `--resume` among them goes on with the newest unfinished run of the same arguments, if there is one.

    Raises:
        DPPMGError: something in the arguments, the data or the models cannot be used.
    """
    resume = RESUME in argv
    config = DPPMGConfig(argv=[argument for argument in argv if argument != RESUME])
    settings = config.settings
    ours = config["model"] == "DPPMG"
    baselines = [_config_beside(config, model) for model in settings.baselines] if ours else []
    threads = set_threads(settings.threads)
    repeat_exactly(config["reproducibility"])
    name = f"{config['dataset']}-{config['model']}"
    with open_run(Path(settings.output_dir), name, resolved(config), config["state"] or "INFO", resume) as run:
        logger.info("run %s: seed %d, %s, %d threads", run.id, config["seed"], config["device"], threads)
        if ours:
            _run_dppmg(config, baselines, run)
        else:
            _run_stock(config, run)
    return run.folder / "report.html"


def _run_stock(config: DPPMGConfig, run: Run) -> None:
    name = config["model"]
    found = _train_beside(config, run)
    run.metrics |= {f"ranking.{part}": value for part, value in found.items()}
    run.metrics |= {f"ranking.{name}.{part}": value for part, value in found.items()}
    write_report(run.folder / "report.html", _about(config, run), run.metrics, run.tracker.history)


def _train_beside(config: DPPMGConfig, run: Run) -> dict[str, float]:
    name = config["model"]
    kept = run.checkpoints.of(f"beside.{name}")
    with run.phase(name, f"RecBole's model on the same split, up to {config['epochs']} epochs") as done:
        before = kept.load()
        if before and "found" in before.training:
            found = before.training["found"]
            run.tracker.restore(before.training["history"])
        else:
            found = train_stock(config, prepare(config), run.folder, run.tracker, kept, before)
            kept.save(config["epochs"] + 1, {}, {"found": found, "history": run.tracker.stored()})
        done(_told({n.removeprefix("test."): v for n, v in found.items() if n.startswith("test.")}))
    return found


def _run_dppmg(config: DPPMGConfig, baselines: Sequence[DPPMGConfig], run: Run) -> None:
    settings = config.settings
    with run.phase("data", f"read and split {config['dataset']}") as done:
        data = prepare(config)
        users, items = data.dataset.user_num - 1, data.dataset.item_num - 1
        done(f"{users} users, {items} items, {data.dataset.inter_num} interactions")
    features = _features(config, data, run)
    plan = _checked_plan(settings, data.dataset.items, features)
    for beside in baselines:
        found = _train_beside(beside, run)
        run.metrics |= {f"ranking.{beside['model']}.{part}": value for part, value in found.items()}

    init_seed(config["seed"], config["reproducibility"])
    config["checkpoint_dir"] = str(run.folder / "checkpoints")
    with in_folder(run.folder):
        model = DPPMG(config, data.train.dataset).to(config["device"])
        trainer = DPPMGTrainer(config, model, run.tracker, run.checkpoints)
    with run.phase("preference", "train the preference model and its quantizer") as done:
        trainer.fit(data.train, data.valid)
        done(run.first_last("preference.loss"))
    for part, loader in (("valid", data.valid), ("test", data.test)):
        values = trainer.evaluate(loader, load_best_model=False)
        run.metrics |= {f"ranking.{part}.{metric}": float(value) for metric, value in values.items()}
    run.metrics |= trainer.quantizer_metrics(data.valid)

    space, pairs = trainer.model.space(), _pairs(data)
    state = RunState(
        settings=settings,
        seed=config["seed"],
        tracker=run.tracker,
        items=data.dataset.items,
        pairs=pairs,
        features=features,
        space=space,
        glossary=build_glossary(space, data.dataset.items),
        reviews=data.dataset.reviews(pairs),
        metrics=run.metrics,
        checkpoints=run.checkpoints,
    )
    _train_generators(state, plan, run)
    bundle = Bundle(
        settings=settings,
        seed=config["seed"],
        space=space,
        items=state.items,
        user_ids=[str(token) for token in data.dataset.field2id_token[data.dataset.uid_field]],
        recent=_recent(data),
        glossary=state.glossary,
        heads=state.heads,
        joint=state.joint,
    )
    with run.phase("bundle", "write it") as done:
        bundle.save_pretrained(run.folder / "bundle", model_card(_about(config, run, plan.lost), run.metrics))
    with run.phase("cards", f"{settings.report_cards} for each of {settings.report_users} users") as done:
        users = choose_users(bundle, settings.report_users, config["seed"])
        cards = make_cards(bundle, users, settings.report_cards, run.folder, config["seed"])
        same_item = []
        if cards and state.heads:
            others = choose_users(bundle, _SAME_ITEM, config["seed"] + 1)
            item = bundle.item_rows[cards[0].item]
            same_item = same_item_cards(bundle, item, others, config["seed"])
        done(f"{len(cards)} cards")
    run.stop_clock()
    about = _about(config, run, plan.lost, state.heads)
    write_report(run.folder / "report.html", about, run.metrics, run.tracker.history, bundle, cards, same_item)


def _features(config: DPPMGConfig, data: Data, run: Run) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Frozen features of both modalities, as far as the dataset has them."""
    with run.phase("features", "read or encode the items' texts and images") as done:
        features = {modality: data.dataset.item_features(modality) for modality in config.settings.modalities}
        counts = {m: int(present.sum()) for m, (_, present) in features.items()}
        done(", ".join(f"{number} items with {m}" for m, number in counts.items()) or "none wanted")
    return features


def _checked_plan(settings: Settings, items: Sequence[Item], features: dict) -> Plan:
    """The plan; what it needs and cannot be had is told before the long work.

    Raises:
        DataError: an item has neither text nor image.
        AssetError, ConfigError: a generator or a reward function cannot be had.
    """
    plan = make_plan(settings, items, features)
    if plan.lost:
        logger.warning("content: %s", plan.lost)
    for modality in plan.shown if "injection" in plan.phases else ():
        model = getattr(settings, f"{modality}_generator")
        if getattr(settings, f"{modality}_head") in _LOCAL and model.count("/") != 1:
            resolve(model)  # a hub id is the head's to fetch
    if "reward" in plan.phases and (function := RewardFunction.of(settings)):
        function.check(items[1:], settings.quantizer_levels)
    return plan


def _train_generators(state: RunState, plan: Plan, run: Run) -> None:
    """Phases 2 and 3, as planned."""
    settings = state.settings
    if "injection" not in plan.phases:
        return
    from recbole_dppmg.trainer.injection import ImageInjection, TextInjection
    from recbole_dppmg.trainer.reward import RewardPhase

    for modality in plan.shown:
        name = getattr(settings, f"{modality}_head")
        catalogue = Catalogue(state.space, state.items, state.glossary)
        head = build_head(modality, name, state.space.codebooks, settings, state.seed, catalogue)
        state.heads[modality] = head
        if not head.parameters():
            logger.info("injection.%s: %s has nothing to teach", modality, name)
            continue
        phase = {"text": TextInjection, "image": ImageInjection}[modality]()
        steps = getattr(settings, f"{modality}_inject_steps")
        with run.phase(f"injection.{modality}", f"teach the tokens to {name} in {steps} steps") as done:
            phase.fit(state)
            done(run.first_last(phase.name))
    if "reward" not in plan.phases:
        return
    if fixed := [head.name for head in state.heads.values() if not head.parameters()]:
        logger.info("reward: left out, %s has nothing to reward", fixed[0])
        return
    for modality, head in state.heads.items():  # to be compared with what the reward makes of them
        (run.folder / INJECTED / modality).mkdir(parents=True, exist_ok=True)
        head.save(run.folder / INJECTED / modality)
    with run.phase("reward", f"{settings.reward_steps} steps for personal and consistent cards") as done:
        RewardPhase().fit(state)
        for modality in state.heads:
            done(run.first_last(f"reward.{modality}.total"))


def _config_beside(config: DPPMGConfig, model: str) -> DPPMGConfig:
    """The configuration of a model beside DPPMG: the same data, split and metrics, its own defaults, and the keys
    given for this run that are not DPPMG's own."""
    own = read_yaml(properties_dir() / "model" / "DPPMG.yaml").keys() - _SHARED
    given = {key: value for key, value in config.external_config_dict.items() if key not in own | {"model", "dataset"}}
    return DPPMGConfig(model, config["dataset"], config_dict=given | {"baselines": config.settings.baselines})


def _pairs(data: Data) -> torch.Tensor:
    train = data.train.dataset
    return torch.stack([train.inter_feat[train.uid_field], train.inter_feat[train.iid_field]], 1)


def _recent(data: Data) -> list[list[int]]:
    """Each user's last training items, newest first."""
    train = data.train.dataset
    users, items = _pairs(data).numpy().T
    timed = train.time_field in train.inter_feat.columns
    time = train.inter_feat[train.time_field].numpy() if timed else np.zeros(len(users))
    order = np.lexsort((np.arange(len(users)), time, users))
    ends = np.cumsum(np.bincount(users, minlength=data.dataset.user_num))
    items = items[order]
    return [items[max(start, end - _RECENT) : end][::-1].tolist() for start, end in zip([0, *ends], ends, strict=False)]


def _about(config: DPPMGConfig, run: Run, lost: str = "", heads: Iterable[str] = ()) -> dict[str, str]:
    about = {"id": run.id, "model": config["model"], "dataset": config["dataset"]}
    for modality in heads:  # of a folder its name: a report may be shown to others
        about[f"{modality}_generator"] = Path(getattr(config.settings, f"{modality}_generator")).name
    notes = [f"{lost[0].upper()}{lost[1:]}."] if lost else []
    if config["model"] == "DPPMG" and config.settings.image_dir == DRAWN:
        notes.append(_DRAWN)
    if notes:
        about["note"] = " ".join(notes)
    return about


def _told(values: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {value:.4f}" for name, value in values.items() if name in ("ndcg@10", "ndcg@20", "recall@20")
    )
