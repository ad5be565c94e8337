import evaluation_heads
import pytest
import torch

from recbole_dppmg.bundle import Bundle
from recbole_dppmg.config import DPPMGConfig
from recbole_dppmg.errors import DataError
from recbole_dppmg.evaluate import Data, evaluate, interactions, prepare, summarise, train_judge
from recbole_dppmg.evaluation.generation import make_plan
from recbole_dppmg.model.dppmg import DPPMG
from recbole_dppmg.model.glossary import build_glossary
from recbole_dppmg.trainer.trainer import DPPMGTrainer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A trained preference model on texts alone, read by a tiny encoder, with its data and a judge."""
    import tiny_encoders
    from preference_data import write_dataset

    root = tmp_path_factory.mktemp("world")
    write_dataset(root)
    keys = {
        "data_path": str(root), "text_encoder": str(tiny_encoders.save_text_encoder(root / "bert")),
        "feature_cache": str(root / "features"), "embedding_size": 16, "train_batch_size": 512, "learning_rate": 0.01,
        "epochs": 20, "quantizer_warmup": 5, "quantizer_codes": 8, "knn_k": 4, "seed": 3, "gpu_id": "",
        "text_head": "evaluation_heads:Policy",
    }  # fmt: skip

    def config():
        return DPPMGConfig("DPPMG", "tiny", config_dict=keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        data = prepare(config())
        trainer = DPPMGTrainer(config(), DPPMG(config(), data.train.dataset))
        trainer.fit(data.train, data.valid, saved=False)
        space = trainer.model.space()
        bundle = Bundle(
            settings=config().settings,
            seed=3,
            space=space,
            items=data.dataset.items,
            user_ids=[str(token) for token in data.dataset.field2id_token["user_id"]],
            recent=[space.history.take(torch.tensor([u])).items.tolist() for u in range(data.dataset.user_num)],
            glossary=build_glossary(space, data.dataset.items),
            heads={},
        )
        judge = train_judge(config(), data, bundle, 20, "words", keys["text_encoder"])
    return bundle, data, judge


@pytest.fixture
def judged(world, tmp_path):
    """What the evaluation finds of a policy, and of the one before the reward phase."""
    bundle, data, judge = world

    def run(mode: str, before: str, pairs: int = 120):
        head = evaluation_heads.Policy("", bundle.space.codebooks, bundle.settings, 3)
        head._glossary = bundle.glossary
        for folder, saved in (("heads", mode), ("injected", before)):
            (tmp_path / folder / "text").mkdir(parents=True)
            head.mode = saved
            head.save(tmp_path / folder / "text")
        head.mode = mode
        bundle.heads = {"text": head}
        return evaluate(bundle, data, judge, pairs, 0, tmp_path, tmp_path / "injected")

    return run


def test_the_plan_holds_items_fixed_and_users_apart(world):
    bundle, data, _ = world
    bundle.heads = {"text": None}
    test, train, valid = (interactions(part.dataset) for part in (data.test, data.train, data.valid))
    known = torch.cat([train, valid])
    plan = make_plan(bundle, known, test, 80, seed=0)
    assert plan.users.shape == (4, 20)
    assert set(plan.items.tolist()) <= set(test[:, 1].tolist())
    assert len(plan.users.unique()) >= 75  # of 90 users, few twice
    assert all(len(row.unique()) == 20 for row in plan.users)
    met = {tuple(pair) for pair in known.tolist()}
    pairs = [(u, i) for i, row in zip(plan.items.tolist(), plan.users.tolist(), strict=True) for u in row]
    assert not met & set(pairs)
    took = {tuple(pair) for pair in test.tolist()}
    for item, row in zip(plan.items.tolist(), plan.users.tolist(), strict=True):
        assert {u for u, i in took if i == item} <= set(row)  # who took it in the test split is asked first
    again = make_plan(bundle, known, test, 80, seed=0)
    assert torch.equal(plan.users, again.users) and torch.equal(plan.items, again.items)
    assert not torch.equal(plan.users, make_plan(bundle, known, test, 80, seed=1).users)
    with pytest.raises(DataError, match="--pairs"):
        make_plan(bundle, known, test, 100_000, seed=0)


def test_tokens_that_are_spoken_are_heard_and_controls_are_at_chance(judged):
    result = judged("speak", "speak", 400)
    metrics = result.metrics
    assert metrics["judge.text.auc"] > 0.6
    own, other, none = (f"judge.text.top1.{condition}" for condition in ("own", "other", "none"))
    assert metrics[f"{own}.low"] > metrics[f"{other}.high"]
    for condition in ("none", "template", "history", "random"):  # this head says nothing in these
        assert metrics[f"judge.text.top1.{condition}"] == pytest.approx(0.05)
    assert metrics[f"{own}.low"] > metrics[none]
    assert metrics["judge.text.rank.own.high"] < min(10.5, metrics["judge.text.rank.other.low"])
    assert metrics["judge.text.gap.mean.low"] > 0
    assert metrics["judge.text.gap.mean"] == metrics["judge.text.gap.own"]
    assert metrics["judge.text.gap.sign_p"] < 1e-4
    assert metrics["personalization.text.own.low"] > metrics["personalization.text.none.high"]
    assert metrics["judge.text.top1.before"] == metrics["judge.text.top1.after"] == metrics[own]
    assert metrics["gain.judge.text.gap"] == 0
    assert metrics["evaluation.pairs"] == 400
    assert result.flags == []


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("parrot", {"the same for most users", "whatever the item", "name their item less often"}),
        ("stutter", {"the same for most users", "whatever the item", "repeat themselves"}),
    ],
)
def test_degenerate_policies_are_flagged(judged, mode, expected):
    result = judged(mode, "speak")
    for words in expected:
        assert any(words in flag for flag in result.flags), (words, result.flags)
    assert result.metrics["gain.judge.text.gap.high"] < 0
    assert result.metrics["judge.text.top1.own"] == pytest.approx(0.05)


def test_a_reward_that_rises_while_the_judge_falls_is_flagged():
    generator = torch.Generator().manual_seed(0)

    def around(mean):
        return mean + 0.1 * torch.randn(200, generator=generator)

    from recbole_dppmg.evaluation.hacking import findings

    samples = {
        "personalization.image.own": around(1.0), "personalization.image.before": around(0.5),
        "judge.image.gap.own": around(0.1), "judge.image.gap.before": around(0.2),
    }  # fmt: skip
    flags = findings(summarise(samples, 0), 20)
    assert len(flags) == 1 and "gamed" in flags[0]
    samples["judge.image.gap.own"] = around(0.3)
    assert findings(summarise(samples, 0), 20) == []


def test_data_is_what_the_judge_says(world):
    bundle, data, judge = world
    assert isinstance(data, Data)
    known = judge.space.history.sizes.sum()
    assert known == len(interactions(data.train.dataset)) + len(interactions(data.valid.dataset))
    assert bundle.space.history.sizes.sum() == len(interactions(data.train.dataset))
