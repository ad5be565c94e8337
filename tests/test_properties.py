"""What holds for any dataset: held-out interactions reach nothing that is trained, ids come back as they were, and the
order of items and rows says nothing."""

import random
import tempfile
from collections import Counter
from pathlib import Path

import preference_data
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from recbole_dppmg.bundle import Bundle
from recbole_dppmg.config import DPPMGConfig
from recbole_dppmg.data.graph import knn_graph
from recbole_dppmg.data.lists import ItemLists
from recbole_dppmg.evaluation.ranking import RankingTask, evaluate
from recbole_dppmg.model.dppmg import DPPMG
from recbole_dppmg.model.glossary import build_glossary
from recbole_dppmg.pipeline import _pairs, _recent
from recbole_dppmg.settings import Settings
from recbole_dppmg.trainer.stock import prepare
from recbole_dppmg.trainer.trainer import DPPMGTrainer

SPLITS = [
    {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"},
    {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "none", "mode": "full"},
    {"split": {"RS": [0.6, 0.2, 0.2]}, "order": "RO", "group_by": "user", "mode": "full"},
    {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "none", "mode": "full"},
    {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
]
# an example takes a second and more: a failing one is told as it was found
quick = {"deadline": None, "suppress_health_check": list(HealthCheck)}
few = settings(max_examples=10, phases=[Phase.explicit, Phase.reuse, Phase.generate], **quick)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # RecBole writes where it stands
    monkeypatch.setattr("sys.argv", ["pytest"])


def write(folder, rows, titles=None):
    """A dataset `any` of (user, item, time) rows and of titles by item."""
    folder.mkdir()
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
    (folder / "any.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if titles is not None:
        lines = ["item_id:token\ttitle:token", *("\t".join(row) for row in titles.items())]
        (folder / "any.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder.parent


def loaded(root, **keys):
    """Configuration and data, from another folder for each example."""
    given_keys = {"data_path": str(root), "checkpoint_dir": str(root / "saved"), "use_gpu": False, "embedding_size": 4}
    config = DPPMGConfig("DPPMG", "any", config_dict=given_keys | {"modalities": [], "state": "ERROR"} | keys)
    return config, prepare(config)


@st.composite
def histories(draw):
    """(user, item, time) rows, in any order, with equal times; each user has each item once."""
    n_items, rows = draw(st.integers(6, 14)), []
    for user in range(draw(st.integers(3, 7))):
        chosen = draw(st.lists(st.integers(0, n_items - 1), min_size=5, max_size=n_items, unique=True))
        rows += [(f"u{user}", f"i{item}", draw(st.integers(0, 4))) for item in chosen]
    most = max(Counter(user for user, _, _ in rows).values())
    assume(most < len({item for _, item, _ in rows}))  # RecBole refuses a user who has everything
    return draw(st.permutations(rows))


def parts_of(data):
    """The three parts of a split as sets of (user, item) rows, after a check that none has one twice."""
    found = []
    for loader in (data.train, data.valid, data.test):
        users, items = (loader.dataset.inter_feat[f].tolist() for f in ("user_id", "item_id"))
        found.append(set(zip(users, items, strict=True)))
        assert len(found[-1]) == len(users)
    return found


@few
@given(rows=histories(), split=st.sampled_from(SPLITS), cells=st.sampled_from([2**23, 1]))
def test_no_split_lets_a_held_out_interaction_into_training(rows, split, cells):
    with tempfile.TemporaryDirectory() as scratch:
        config, data = loaded(write(Path(scratch) / "any", rows), eval_args=split, softmax_cells=cells)
        model = DPPMG(config, data.train.dataset)
    train, valid, test = parts_of(data)
    held = valid | test
    assert not train & held and not valid & test and len(train) + len(held) == len(rows)
    edges = torch.as_tensor(model.graph.edges)
    assert {(u, i - model.n_users) for u, i in edges.T.tolist() if u < model.n_users} == train
    lists = model.history
    assert set(zip(lists.rows.tolist(), lists.items.tolist(), strict=True)) == train
    assert set(map(tuple, _pairs(data).tolist())) == train  # what the generators are taught
    assert {(user, item) for user, items in enumerate(_recent(data)) for item in items} <= train  # what cards show
    if split["order"] == "TO" and split["group_by"] == "user":
        when = {(user, item): time for user, item, time in rows}
        users, items = (data.dataset.field2id_token[field] for field in ("user_id", "item_id"))
        times = {pair: when[users[pair[0]], items[pair[1]]] for pair in train | held}
        for user in {user for user, _ in held}:
            last = max(times[pair] for pair in train if pair[0] == user)
            assert all(times[pair] >= last for pair in held if pair[0] == user)
    if model.negatives is not None:  # sampled negatives know of training items alone
        everyone = torch.arange(model.n_users)
        drawn, _, known = model.negatives.draw(everyone, torch.Generator().manual_seed(0))
        of_user = {(u, int(drawn[n])) for u, n in known.nonzero().tolist()}
        assert of_user == {(u, i) for u, i in train if i in set(drawn.tolist())}


ODD = [
    "NA",
    "None",
    "null",
    "nan",
    "N/A",
    "-1",
    "007",
    "7",
    "7.0",
    "1e5",
    "True",
    "é",
    "é",
    "a b",
    "<text_0_1>",
    "∅",
    "#x",
]
ids = st.one_of(
    st.sampled_from(ODD),
    st.text(
        st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp", "Zs"]),
        min_size=1,
        max_size=6,
    ),
)


@few
@given(
    users=st.lists(ids, min_size=3, max_size=6, unique=True),
    items=st.lists(ids, min_size=6, max_size=10, unique=True),
    seed=st.integers(0, 2**31),
)
def test_ids_come_back_as_they_were(users, items, seed):
    """From the files through RecBole's internal ids, a model and a bundle on the disk to what is recommended."""
    draw = random.Random(seed)
    rows = [(u, i, t) for u in users for t, i in enumerate(draw.sample(items, len(items) - 1 - draw.randrange(2)))]
    titles = {item: f"Title of {n}" for n, item in enumerate(items)}
    with tempfile.TemporaryDirectory() as scratch:
        config, data = loaded(write(Path(scratch) / "any", rows, titles))
        tokens = {f: [str(t) for t in data.dataset.field2id_token[f]] for f in ("user_id", "item_id")}
        assert sorted(tokens["user_id"][1:]) == sorted(users)
        assert set(tokens["item_id"][1:]) == {item for _, item, _ in rows}
        train, valid, test = parts_of(data)
        named = {(tokens["user_id"][u], tokens["item_id"][i]) for u, i in train | valid | test}
        assert named == {(user, item) for user, item, _ in rows}
        assert all(item.title == titles[item.id] for item in data.dataset.items[1:])
        space = DPPMG(config, data.train.dataset).space()
        bundle = Bundle(
            Settings(), 1, space, data.dataset.items, tokens["user_id"], [[] for _ in tokens["user_id"]], {}, {}
        )
        bundle.save_pretrained(Path(scratch) / "bundle", "")
        again = Bundle.from_pretrained(Path(scratch) / "bundle")
    for user in users:
        row = again.row_of(user)
        assert again.user_ids[row] == user
        best, scores = again.space.recommend(torch.tensor([row]), 3)
        known = {tokens["item_id"][i] for u, i in train if u == row}
        found = {again.items[i].id for i, s in zip(best[0].tolist(), scores[0].tolist(), strict=True) if s > -torch.inf}
        assert not found & known
    for item in tokens["item_id"][1:]:
        assert again.items[again.item_rows[item]].id == item


@settings(max_examples=40, **quick)
@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(1, 6))
def test_renumbered_items_have_the_same_graph_and_the_same_metrics(seed, n_items, k):
    """Row 0 is padding and stays; with new numbers, everything is the same but for the numbers."""
    draw = torch.Generator().manual_seed(seed)
    new = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(n_items, generator=draw)])  # of old rows
    old = new.argsort()

    features, present = torch.randn(n_items + 1, 5, generator=draw), torch.rand(n_items + 1, generator=draw) > 0.2
    present[0] = False
    one, other = knn_graph(features, present, k), knn_graph(features[old], present[old], k)
    edges = torch.as_tensor(one.edges)
    assert set(map(tuple, new[edges].T.tolist())) == set(map(tuple, torch.as_tensor(other.edges).T.tolist()))

    n_users = 8
    scores = torch.randn(n_users, n_items + 1, generator=draw)
    table = torch.rand(n_users, n_items + 1, generator=draw)
    positive, history = (table < 0.3).index_fill_(1, torch.tensor([0]), False), table > 0.8
    positive[torch.arange(n_users), 1 + torch.randint(n_items, (n_users,), generator=draw)] = True

    def task(rows):
        lists = [ItemLists.from_pairs(*mask[:, rows].nonzero().T, n_users) for mask in (positive, history & ~positive)]
        return RankingTask(torch.arange(n_users), *lists, n_items + 1)

    top = (1, min(5, n_items))
    first = evaluate(lambda users: scores[users].clone(), task(torch.arange(n_items + 1)), top)
    second = evaluate(lambda users: scores[:, old][users].clone(), task(old), top)
    assert first == pytest.approx(second, abs=1e-12)


def test_the_order_of_the_files_rows_does_not_matter(tmp_path):
    """Rows of `.item` in another order: the same model bit by bit. Rows of `.inter`: other internal ids, so another
    start of the training, but the same ids, the same glossary's titles, and metrics that agree."""
    keys = {"eval_args": SPLITS[0], "epochs": 30}

    def trained(folder):
        data = preference_data.prepare(folder, **keys)
        trainer = DPPMGTrainer(data.config, DPPMG(data.config, data.train.dataset))
        trainer.fit(data.train, data.valid, saved=False)
        return data, trainer.model, trainer.evaluate(data.test, load_best_model=False)

    found = {}
    for name, file in {"as it is": None, "items": "tiny.item", "interactions": "tiny.inter"}.items():
        folder = tmp_path / name
        folder.mkdir()
        preference_data.write_dataset(folder)
        if file:
            path = folder / "tiny" / file
            header, *rows = path.read_text().splitlines()
            random.Random(3).shuffle(rows)
            path.write_text("\n".join([header, *rows]) + "\n")
        found[name] = trained(folder)
    data, model, metrics = found["as it is"]
    _, same, equal = found["items"]
    assert equal == metrics
    for tensor, other in zip(model.state_dict().values(), same.state_dict().values(), strict=True):
        assert torch.equal(tensor, other)
    shuffled, renumbered, close = found["interactions"]
    for field in ("user_id", "item_id"):
        one, other = (list(d.dataset.field2id_token[field]) for d in (data, shuffled))
        assert one != other and sorted(one) == sorted(other)
    for name in ("ndcg@20", "recall@20"):
        assert close[name] == pytest.approx(metrics[name], abs=0.05), name
    titles = []
    for part, own in ((data, model), (shuffled, renumbered)):
        glossary = build_glossary(own.space(), part.dataset.items)
        titles.append({title for entry in glossary.values() for title in entry["items"]})
    assert len(titles[0] & titles[1]) > 0.8 * len(titles[0] | titles[1])
