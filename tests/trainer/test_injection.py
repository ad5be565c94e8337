"""What injection teaches, on a tiny real language model and a trained preference model."""

import pytest
import tiny_language_models
import torch

from recbole_dppmg.generators.base import Catalogue, build_head
from recbole_dppmg.generators.targets import reviewed
from recbole_dppmg.model.glossary import build_glossary
from recbole_dppmg.settings import Settings
from recbole_dppmg.trainer.injection import TextInjection, meant_items
from recbole_dppmg.trainer.state import RunState, as_tokens
from recbole_dppmg.trainer.tracking import Tracker
from recbole_dppmg.types import Item, TextRequest


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return str(tiny_language_models.save_language_model(tmp_path_factory.mktemp("lm")))


def taught(trained, language_model, reviews):
    """A head after text injection, the state it was taught in, and the first pair's request."""
    data, trainer = trained
    space = trainer.model.space()
    items = [Item("", "", ""), *(Item(str(n), f"Film {n}", f"Film {n}. Drama.", ("Drama",)) for n in range(1, 200))]
    items = items[: len(space.item_bias)]
    feat = data.train.dataset.inter_feat
    pairs = torch.stack([feat["user_id"], feat["item_id"]], 1)
    settings = Settings(text_generator=language_model, text_inject_steps=30, text_inject_batch=8)
    glossary = build_glossary(space, items)
    head = build_head("text", "causal_lm", space.codebooks, settings, 1, Catalogue(space, items, glossary))
    written = None if reviews is None else [reviews] * len(pairs)
    state = RunState(settings, 1, Tracker(), items, pairs, {}, space, glossary, written, {"text": head})
    TextInjection().fit(state)
    users, rows = pairs[:8].T
    return head, state, state.requests(TextRequest, rows, as_tokens(space.leave_one_out(users, rows)))


def test_what_users_wrote_is_taught_where_they_wrote(trained, language_model):
    review = "a slow film that stays with you"
    losses = {}
    for given in (None, review):
        head, state, requests = taught(trained, language_model, given)
        with torch.no_grad():
            losses[given] = head.teaching_loss(requests, [reviewed(r.item, review) for r in requests]).item()
        found = state.tracker.first_last("injection.text.loss")
        assert found["injection.text.loss.last"] < found["injection.text.loss.first"]
    assert losses[review] < losses[None] - 0.05


def test_untold_images_are_of_items_near_to_what_the_tokens_mean(trained):
    data, trainer = trained
    space = trainer.model.space()
    kinds = torch.tensor([-1] + [int(t) % 4 for t in data.dataset.field2id_token[data.dataset.iid_field][1:]])
    tastes = torch.tensor([-1] + [int(t[1:]) % 4 for t in data.dataset.field2id_token[data.dataset.uid_field][1:]])
    shown = [Item(str(n), "", "", image="x.png" if n and n % 3 else None) for n in range(len(kinds))]
    state = RunState(Settings(), 1, Tracker(), shown, torch.zeros(0, 2), {}, space, {})
    found = meant_items(state, space.user_codes["image"][1:], torch.Generator().manual_seed(0))
    assert (found % 3).all()
    assert (kinds[found] == tastes[1:]).float().mean() > 0.6  # chance .25
