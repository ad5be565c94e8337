import pytest
import torch
from preference_data import KINDS, prepare

from recbole_dppmg.data.lists import ItemLists
from recbole_dppmg.errors import BundleError
from recbole_dppmg.model.dppmg import DPPMG
from recbole_dppmg.model.glossary import build_glossary
from recbole_dppmg.model.space import PreferenceSpace
from recbole_dppmg.trainer.trainer import DPPMGTrainer


@pytest.fixture(scope="module")
def space(trained):
    return trained[1].model.space()


def test_fold_in_of_training_items_is_the_trained_user_when_there_is_no_vector_of_its_own(trained):
    model = trained[1].model
    delta = model.delta.detach().clone()
    with torch.no_grad():
        model.delta.zero_()
    model.train()
    space = model.space()
    with torch.no_grad():
        model.delta.copy_(delta)
    model.train()
    folded = space.fold_in(space.history)
    for channel in space.channels:
        torch.testing.assert_close(folded.preference[channel][1:], space.user_preference[channel][1:])
    for modality in space.modalities:
        assert (folded.codes[modality][1:] == space.user_codes[modality][1:]).float().mean() > 0.99
    torch.testing.assert_close(space.scores(folded.fused[1:]), space.scores(torch.arange(1, 91)))


def test_a_known_user_folded_in_has_the_same_tokens(trained, space):
    assert trained[1].model.delta[1:].abs().mean() > 1e-4  # vectors of their own were learned
    folded = space.fold_in(space.history)
    for modality in space.modalities:
        assert (folded.codes[modality][1:] == space.user_codes[modality][1:]).float().mean() > 0.99
    assert not torch.allclose(folded.preference["id"][1:], space.user_preference["id"][1:], atol=1e-3)


def test_leave_one_out_is_fold_in_of_the_shortened_list(space):
    users = torch.tensor([1, 1, 5, 9, 5])
    lists = [space.history.take(users[[n]]).items.tolist() for n in range(5)]
    items = torch.tensor([lists[0][0], lists[1][-1], lists[2][3], 79, lists[4][2]])
    if 79 in lists[3]:
        items[3] = next(item for item in range(1, 160) if item not in lists[3])
    left = [[item for item in own if item != out] for own, out in zip(lists, items.tolist(), strict=True)]
    assert [len(a) - len(b) for a, b in zip(lists, left, strict=True)] == [1, 1, 1, 0, 1]
    weights = []
    for row, (own, out) in enumerate(zip(lists, items.tolist(), strict=True)):
        given = space.history.take(users[[row]]).weights
        weights.append(given[torch.tensor([item != out for item in own])])
    shortened = ItemLists.of(left)._replace(weights=torch.cat(weights))
    found, expected = space.leave_one_out(users, items), space.fold_in(shortened)
    for modality in space.modalities:
        assert torch.equal(found[modality], expected.codes[modality])


def test_a_user_without_items_gets_the_average_and_not_nan(space):
    folded = space.fold_in([[], [1, 2]])
    assert torch.isfinite(folded.fused).all()
    assert folded.preference["id"].norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    only = ItemLists.of([[], [3]])
    lone = PreferenceSpace(**{**vars_of(space), "history": only, **two_users(space)})
    left = lone.leave_one_out(torch.tensor([1]), torch.tensor([3]))
    assert all(len(codes) == 1 for codes in left.values())


def test_padding_and_users_without_training_items_have_the_average_preference(trained, space):
    model = trained[1].model
    assert (model.history.sizes == 0).nonzero().flatten().tolist() == [0]
    for table in space.user_preference.values():
        average = torch.nn.functional.normalize(table[1:].mean(0), dim=0)
        torch.testing.assert_close(table[0], average)


def vars_of(space):
    return {name: getattr(space, name) for name in PreferenceSpace.__dataclass_fields__}


def two_users(space):
    tables = {"user_preference": space.user_preference, "user_codes": space.user_codes}
    return {name: {c: t[:2] for c, t in table.items()} for name, table in tables.items()}


def test_recommendations_are_the_best_unseen_items(space):
    users = torch.tensor([3, 8])
    items, scores = space.recommend(users, 10)
    table = space.scores(users)
    for row, user in enumerate(users):
        seen = set(space.history.take(user.view(1)).items.tolist()) | {0}
        order = [item for item in table[row].argsort(descending=True).tolist() if item not in seen]
        assert items[row].tolist() == order[:10]
    assert (scores.diff(dim=1) <= 0).all()
    known = space.fold_in([[1, 2, 3]])
    assert not {1, 2, 3} & set(space.recommend(known.fused, 20, ItemLists.of([[1, 2, 3]]))[0][0].tolist())


def test_projection_places_content_where_its_users_are(trained, space):
    data, _ = trained
    for modality in space.modalities:
        features, present = data.dataset.item_features(modality)
        place = space.project(modality, features)
        assert place.norm(dim=1).detach().numpy() == pytest.approx(1, abs=1e-5)
        held = data.test._dataset.inter_feat
        users, items = held["user_id"], held["item_id"]
        users, items = users[present[items]], items[present[items]]
        scores = space.user_quantized[modality] @ place.T
        own = scores[users, items].unsqueeze(1)
        auc = (own > scores[1:, items].T).float().mean().item()  # against all users
        assert auc > 0.6, modality


def test_a_gradient_flows_through_the_projection(space):
    features = torch.randn(2, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (space.project("text", features) * space.user_quantized["text"][1:3]).sum().backward()
    assert features.grad.abs().sum() > 0


def test_tensors_and_back(space):
    again = PreferenceSpace.from_tensors(space.tensors())
    assert again.channels == space.channels and again.modalities == ("text", "image")
    assert again.user_tokens(4) == space.user_tokens(4)
    users = torch.arange(5)
    assert torch.equal(again.scores(users), space.scores(users))


@pytest.mark.parametrize("fault", ["missing", "shape", "code"])
def test_damaged_tensors_are_refused_by_name(space, fault):
    named = dict(space.tensors())
    if fault == "missing":
        del named["start.text"]
    elif fault == "shape":
        named["item_preference.text"] = named["item_preference.text"][:3]
    else:
        named["user_codes.text"] = named["user_codes.text"] + 100
    with pytest.raises(
        BundleError, match={"missing": "start.text", "shape": "item_preference.text"}.get(fault, "user_codes")
    ):
        PreferenceSpace.from_tensors(named)


def test_glossary_tells_the_kinds_apart(trained, space):
    data, _ = trained
    glossary = build_glossary(space, data.dataset.items)
    assert len(glossary) == 2 * 4 * 8
    words = {word for name, entry in glossary.items() if name.startswith("<text_0_") for word in entry["words"]}
    assert len({kind.lower() for kind in KINDS} & words) == 4
    entry = glossary["<text_0_0>"]
    assert entry["items"] and all(title.startswith("Film") for title in entry["items"])


@pytest.mark.parametrize("modalities", [("text",), ("image",), ()])
def test_any_modality_may_be_absent(tiny_path, tmp_path, monkeypatch, modalities):
    monkeypatch.chdir(tmp_path)  # RecBole writes logs where it stands
    data = prepare(tiny_path, modalities, epochs=12)
    trainer = DPPMGTrainer(data.config, DPPMG(data.config, data.train.dataset))
    score, _ = trainer.fit(data.train, data.valid, saved=False)
    space = trainer.model.space()
    assert score > 0
    assert space.modalities == modalities and space.channels == ("id", *modalities)
    assert set(space.user_tokens(1)) == set(modalities)
    again = PreferenceSpace.from_tensors(space.tensors())
    assert torch.equal(again.scores(torch.tensor([2])), space.scores(torch.tensor([2])))
