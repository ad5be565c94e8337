import pytest

from recbole_dppmg.evaluation.hacking import findings

HEALTHY = {
    "same.text.own": 0.1, "same.image.own": 0.05, "alike.text": 0.1, "alike.image": 0.7, "failed.text.own": 0.0,
    "judge.text.auc": 0.7, "judge.image.auc": 0.65, "judge.text.top1.none": 0.05, "quality.text.repetition.own": 0.01,
    "quality.text.empty.own": 0.0,
    "gain.personalization.text": 0.1, "gain.personalization.text.low": 0.05, "gain.personalization.text.high": 0.15,
    "gain.judge.text.gap": 0.01, "gain.judge.text.gap.low": -0.01, "gain.judge.text.gap.high": 0.03,
    "gain.consistency.cosine.low": 0.01, "gain.judge.consistency.cosine.high": 0.02,
}  # fmt: skip


def test_nothing_is_said_of_a_healthy_run():
    assert findings(HEALTHY, 20) == []
    assert findings({}, 20) == []


@pytest.mark.parametrize(
    "change, said",
    [
        ({"same.text.own": 0.9}, "the same for most users"),
        ({"same.image.own": 0.9}, "the same for most users"),
        ({"alike.text": 0.9}, "whatever the item"),
        ({"alike.image": 0.995}, "whatever the item"),
        ({"failed.text.own": 0.2}, "could not be made"),
        ({"quality.text.repetition.own": 0.4}, "repeat"),
        ({"quality.text.empty.own": 0.4}, "empty"),
        ({"gain.judge.text.gap": -0.02, "gain.judge.text.gap.high": -0.01}, "gamed"),
        ({"gain.judge.consistency.cosine.high": -0.01}, "gamed"),
        ({"gain.fidelity.image.high": -0.01}, "farther from their items"),
        ({"gain.quality.text.names_item.high": -0.01}, "name their item less"),
        ({"gain.quality.text.attribute_precision.high": -0.01}, "wrong attributes"),
        ({"judge.image.auc": 0.51}, "say little"),
        ({"judge.text.top1.none": 0.06}, "leaks"),
    ],
)
def test_each_fault_is_told_and_nothing_else(change, said):
    found = findings(HEALTHY | change, 20)
    assert len(found) == 1 and said in found[0]
