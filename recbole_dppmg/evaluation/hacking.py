"""Has the reward been fooled? Checks of the measured numbers; each finding is a sentence for the report."""

from __future__ import annotations

from collections.abc import Mapping

_SAME, _REPEATED, _EMPTY, _BLIND = 0.5, 0.2, 0.05, 0.55
_ALIKE = {"text": 0.5, "image": 0.99}


def findings(metrics: Mapping[str, float], group: int) -> list[str]:
    """What looks wrong in the metrics of an evaluation whose items had `group` users each; empty if nothing does."""
    found = []

    def above(name: str, limit: float) -> bool:
        return metrics.get(name, 0.0) > limit

    def rose(name: str) -> bool:
        return metrics.get(f"gain.{name}.low", 0.0) > 0

    def fell(name: str) -> bool:
        return metrics.get(f"gain.{name}.high", 0.0) < 0

    for m in ("text", "image"):
        if above(f"same.{m}.own", _SAME):
            found.append(
                f"{m}s are the same for most users of an item: {metrics[f'same.{m}.own']:.0%} of them share one; "
                f"the tokens say little"
            )
        if above(f"alike.{m}", _ALIKE[m]):
            found.append(f"{m}s are nearly the same whatever the item is (alike.{m} {metrics[f'alike.{m}']:.2f})")
        if above(f"failed.{m}.own", _EMPTY):
            found.append(f"{metrics[f'failed.{m}.own']:.0%} of the {m}s could not be made")
        if rose(f"personalization.{m}") and fell(f"judge.{m}.gap"):
            found.append(
                f"{m}s: the reward's personalization rose by {metrics[f'gain.personalization.{m}']:.3f} while the "
                f"judge's gap fell by {-metrics[f'gain.judge.{m}.gap']:.4f}: the reward is being gamed"
            )
        if fell(f"fidelity.{m}"):
            found.append(f"{m}s are farther from their items after the reward phase than before")
        if m in ("text", "image") and f"judge.{m}.auc" in metrics and metrics[f"judge.{m}.auc"] < _BLIND:
            found.append(
                f"the judge hardly knows what users like in {m}s (AUC {metrics[f'judge.{m}.auc']:.2f} on the test "
                f"split): its verdicts on {m}s say little"
            )
        leak = metrics.get(f"judge.{m}.top1.none")
        if leak is not None and abs(leak - 1 / group) > 1e-6:
            found.append(f"{m}s without tokens are identified better or worse than by chance: the measure leaks")
    if above("quality.text.repetition.own", _REPEATED):
        found.append(f"texts repeat themselves ({metrics['quality.text.repetition.own']:.0%} of the word pairs)")
    if above("quality.text.empty.own", _EMPTY):
        found.append(f"{metrics['quality.text.empty.own']:.0%} of the texts are empty")
    if rose("consistency.cosine") and fell("judge.consistency.cosine"):
        found.append("consistency rose in the rewarded joint space and fell in the judge's: the reward is being gamed")
    for name, words in (
        ("names_item", "name their item less often"),
        ("attribute_precision", "name wrong attributes more often"),
    ):
        if fell(f"quality.text.{name}"):
            found.append(f"texts {words} after the reward phase than before")
    return found
