"""Stage 2b: reward the generators for personal and consistent text and images.

For a card (user, item) the text generator writes G explanations and the image generator draws G images.
Both groups are scored together (`model/reward.py`, and a function of the user's own): the text learns by GRPO (arXiv
2402.03300), the image as `image_reward.py` says. Only token-associated parameters move.
"""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_dppmg.data.encoders import image_encoder, text_encoder
from recbole_dppmg.generators.grpo import grpo_loss
from recbole_dppmg.model.joint_space import train_joint_space
from recbole_dppmg.model.reward import combine, consistency, fidelity, normalise, personalization
from recbole_dppmg.progress import progress
from recbole_dppmg.trainer.checkpoint import Resumable
from recbole_dppmg.trainer.image_reward import DDPO, ReFL, step_down
from recbole_dppmg.trainer.injection import image_examples
from recbole_dppmg.trainer.reward_function import RewardFunction
from recbole_dppmg.trainer.state import RunState, as_tokens
from recbole_dppmg.types import ImageRequest, PreferenceTokens, TextRequest

logger = logging.getLogger(__name__)

_CANDIDATES = 20
_INNER_STEPS = 2
_SECONDS = "time.reward_step_s"


@dataclass
class Terms:
    """The reward of a batch of B groups: raw terms by name, each (B, G), and their weights."""

    values: dict[str, Tensor]
    weights: dict[str, float]

    def reward(self) -> Tensor:
        """(B, G), each term normalised within its group."""
        return combine(self.values, self.weights)

    def detached(self) -> Terms:
        """The same without gradient."""
        return Terms({name: value.detach() for name, value in self.values.items()}, self.weights)


def totals(steps: list[Terms]) -> Tensor:
    """The total reward by step, float32 (S,): the weighted sum of the terms' means, each in units of its spread
    within a group, as in `combine`, but with the same unit at every step, so that steps can be compared."""
    total = torch.zeros(len(steps))
    for name, weight in steps[0].weights.items():
        values = torch.stack([terms.values[name] for terms in steps])  # (S, B, G)
        total += weight * values.mean((1, 2)) / values.std(-1).mean().clamp_min(1e-6)
    return total


class RewardPhase:
    """Fine-tunes the token-associated parameters of both heads; logs each term of the reward by step, and in the
    end their `total`, see `totals`.

    Adds to the run's metrics `time.reward_step_s`, the mean seconds of a step, and tells the most memory that the
    process ever had (of a GPU: that this phase took). Not a metric: equal runs would differ by it.
    """

    def fit(self, state: RunState) -> None:
        """Train `state.joint` on the items with text and image, then both heads for `reward_steps` steps."""
        both = state.shown("text") & state.shown("image")
        self.state, self.function = state, RewardFunction.of(state.settings)
        text, image = (state.features[m][0][both] for m in ("text", "image"))
        state.joint, retrieval = train_joint_space(text, image, state.settings.joint_epochs, state.seed)
        state.metrics |= {f"joint.{name}": value for name, value in retrieval.items()}
        self._item_joint = state.joint.items(state.features["text"][0], state.features["image"][0])
        self._train(self._cards(both))

    def _cards(self, eligible: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Batches of (users, items), a random one of the user's best unseen items each.

        The second half repeats the first in reverse, so that the first and the last steps are of the same
        cards and the reward's rise can be read off without the cards' own differences.
        """
        state, settings = self.state, self.state.settings
        generator = torch.Generator().manual_seed(state.seed + 4)
        half = (settings.reward_steps + 1) // 2
        active = (state.space.history.sizes > 0).nonzero().squeeze(1)
        users = active[torch.randint(len(active), (half * settings.reward_cards,), generator=generator)]
        scores = state.space.scores(users).masked_fill_(~eligible, -torch.inf)
        best = state.space.history.take(users).mask_(scores).topk(_CANDIDATES, dim=1).indices
        choice = torch.randint(_CANDIDATES, (len(users), 1), generator=generator)
        items = best.gather(1, choice).squeeze(1)
        forward = list(zip(users.split(settings.reward_cards), items.split(settings.reward_cards), strict=True))
        return forward + forward[::-1][settings.reward_steps % 2 :]

    def _train(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        state, settings = self.state, self.state.settings
        text_head, image_head = state.heads["text"], state.heads["image"]
        text_optimizer = torch.optim.AdamW(
            text_head.parameters(), lr=settings.reward_text_learning_rate, weight_decay=0.0
        )
        image_optimizer = torch.optim.AdamW(
            image_head.parameters(), lr=settings.reward_image_learning_rate, weight_decay=0.0
        )
        generator = torch.Generator().manual_seed(state.seed + 5)
        learner = {"refl": ReFL, "ddpo": DDPO}[settings.image_reward](
            image_head, image_optimizer, settings.reward_drift
        )
        done: dict[str, list[Terms]] = {"text": [], "image": []}

        def extra() -> dict:
            terms = {modality: [(t.values, t.weights) for t in found] for modality, found in done.items()}
            return {"terms": terms, "reference": getattr(text_head, "reference", None)}

        resumable = Resumable(
            state.checkpoints.of("reward"),
            state.tracker,
            [*text_head.parameters(), *image_head.parameters()],
            {"text": text_optimizer, "image": image_optimizer, "replay": generator},
            extra,
        )
        start, before = resumable.resume()
        if before:
            done = {modality: [Terms(*terms) for terms in found] for modality, found in before["terms"].items()}
            text_head.reference = before["reference"]
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        for step, (users, items) in enumerate(progress(batches[start:], "reward"), start):
            began = time.perf_counter()
            # mirrored steps share the seed too: the same noise, the same draws
            seed = state.seed + min(step, len(batches) - 1 - step)
            tokens = as_tokens({m: codes[users] for m, codes in state.space.user_codes.items()})
            group = settings.reward_group
            samples = text_head.sample_group(state.requests(TextRequest, items, tokens, seed), group, seed)
            requests = [r for r in state.requests(ImageRequest, items, tokens, seed) for _ in range(group)]
            images = learner.draw(requests, seed)
            fluency = text_head.fluency(samples)
            text_terms, image_terms = self.score(users, items, tokens, samples.texts, images, fluency)

            self._text_step(text_head, text_optimizer, samples, text_terms)
            drift = learner.learn(
                image_terms.reward().flatten(), lambda: settings.reward_replay * self._replay(image_head, generator)
            )
            for modality, terms in (("text", text_terms), ("image", image_terms)):
                done[modality].append(terms.detached())
                state.tracker.log(
                    {f"reward.{modality}.{n}": v.mean() for n, v in done[modality][-1].values.items()}, step
                )
            state.tracker.log({"reward.image.drift": drift}, step)
            state.tracker.log({_SECONDS: time.perf_counter() - began}, step)
            resumable.after(step + 1, last=step + 1 == len(batches))
        seconds = [value for _, value in state.tracker.history[_SECONDS]]
        state.metrics[_SECONDS] = round(sum(seconds) / len(seconds), 3)
        logger.info("reward: %.0f MB of memory at most", _peak_memory())
        for modality, terms in done.items():
            for step, total in enumerate(totals(terms)):
                state.tracker.log({f"reward.{modality}.total": total}, step)

    def score(
        self,
        users: Tensor,
        items: Tensor,
        tokens: Sequence[PreferenceTokens],
        texts: list[str],
        images: Tensor,
        fluency: Tensor,
    ) -> tuple[Terms, Terms]:
        """Reward terms of B cards with G texts and G images each.

        Args:
            users, items: int64 (B,), rows.
            tokens: of the B users.
            texts: B * G explanations, card by card.
            images: float32 (B * G, 3, H, W) in [0, 1], card by card; gradient flows.
            fluency: float32 (B * G,), the language model's quality of each text.
        """
        settings, space, joint = self.state.settings, self.state.space, self.state.joint
        shape = (len(users), len(texts) // len(users), -1)
        text_features = text_encoder(settings.text_encoder).encode(texts)
        image_features = image_encoder(settings.image_encoder)(images)
        others = torch.randint(
            1,
            len(space.user_codes["text"]),
            (len(users), settings.reward_users),
            generator=torch.Generator().manual_seed(int(users[0])),
        )
        p_text, p_image = (
            personalization(
                space.project(m, f).view(shape), space.user_quantized[m][users], space.user_quantized[m][others]
            )
            for m, f in (("text", text_features), ("image", image_features))
        )
        joint_text, joint_image = joint("text", text_features).view(shape), joint("image", image_features).view(shape)
        c_text, c_image = consistency(joint_text, joint_image)
        item = self._item_joint[items]
        weights = {
            "personalization": settings.reward_personalization,
            "consistency": settings.reward_consistency,
            "fidelity": settings.reward_fidelity,
        }
        text_terms = {
            "personalization": p_text,
            "consistency": c_text.detach(),
            "fidelity": fidelity(joint_text, item),
            "quality": fluency.view(len(users), -1),
        }
        image_terms = {"personalization": p_image, "consistency": c_image, "fidelity": fidelity(joint_image, item)}
        weights |= {"quality": settings.reward_quality, "function": settings.reward_function_weight}
        if self.function:
            group = len(texts) // len(users)
            shown = [self.state.items[i] for i in items.tolist() for _ in range(group)]
            own = [user for user in tokens for _ in range(group)]
            for modality, contents, terms in (("text", texts, text_terms), ("image", images, image_terms)):
                if (values := self.function(modality, contents, shown, own)) is not None:
                    terms["function"] = values.view(len(users), -1)
        text, image = (Terms(t, {name: weights[name] for name in t}) for t in (text_terms, image_terms))
        return text, image

    def _text_step(self, head, optimizer, samples, terms: Terms) -> None:
        reference, old = head.reference_log_probs(samples), None
        for _ in range(_INNER_STEPS):
            new = head.log_probs(samples)
            old = new.detach() if old is None else old
            advantages = normalise(terms.reward()).flatten().to(new.device)
            loss = grpo_loss(new, old, reference, advantages, samples.mask, kl=self.state.settings.reward_kl)
            step_down(optimizer, head.parameters(), loss)

    def _replay(self, head, generator: torch.Generator) -> Tensor:
        """The teaching loss on a few liked items, against forgetting what was taught."""
        state = self.state
        pairs = state.pairs[state.shown("image")[state.pairs[:, 1]]]
        users, items = pairs[torch.randint(len(pairs), (state.settings.reward_cards * 2,), generator=generator)].T
        tokens = as_tokens(state.space.leave_one_out(users, items))
        return head.teaching_loss(*image_examples(state, items, tokens, generator), generator)


def _peak_memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
