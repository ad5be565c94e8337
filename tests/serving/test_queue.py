"""The queue: bounded, shared work, places given up, deadlines, leases."""

import pytest

from recbole_dppmg.serving import queue
from recbole_dppmg.serving.queue import JobQueue, QueueFull
from recbole_dppmg.serving.store import Database


@pytest.fixture
def make(tmp_path):
    return lambda capacity=8, deadline=60.0, bundle="b": JobQueue(
        Database(tmp_path / "jobs.sqlite3"), bundle, capacity, deadline
    )


def cards(work):
    return [w.card for w in work]


def test_first_come_first_made_in_batches(make):
    jobs = make()
    told = [jobs.submit(f"card{n}", {"item": n}) for n in range(5)]
    assert [job.position for job in told] == [0, 1, 2, 3, 4]
    work = jobs.take(3)
    assert cards(work) == ["card0", "card1", "card2"] and work[0].request == {"item": 0}
    assert jobs.get(told[0].id).state == "running" and jobs.get(told[4].id).position == 1
    jobs.finish("card0")
    jobs.finish("card1", "no luck")
    assert jobs.get(told[0].id).state == "done"
    assert (jobs.get(told[1].id).state, jobs.get(told[1].id).error) == ("failed", "no luck")
    assert cards(jobs.take(8)) == ["card3", "card4"]
    assert jobs.take(8) == []


def test_it_is_bounded_and_a_cancelled_job_frees_its_place(make):
    jobs = make(capacity=2)
    first = jobs.submit("a", {})
    jobs.submit("b", {})
    with pytest.raises(QueueFull, match="2 places"):
        jobs.submit("c", {})
    assert jobs.cancel(first.id) and not jobs.cancel(first.id)
    jobs.submit("c", {})
    assert cards(jobs.take(8)) == ["b", "c"]


def test_who_asks_for_a_waiting_card_again_takes_no_place_from_others(make, monkeypatch):
    monkeypatch.setattr(queue, "_JOBS_PER_PLACE", 4)
    jobs = make(capacity=2)
    told = [jobs.submit("a", {}) for _ in range(3)]
    assert jobs.depth() == 1
    jobs.submit("b", {})
    with pytest.raises(QueueFull):
        jobs.submit("c", {})
    more = [jobs.submit("a", {}) for _ in range(4)]
    with pytest.raises(QueueFull):  # not without end
        jobs.submit("a", {})
    assert cards(jobs.take(1)) == ["a"]
    more.append(jobs.submit("a", {}))  # it is being made, all places are free but for b's
    jobs.finish("a")
    assert {jobs.get(job.id).state for job in told + more} == {"done"}


def test_equal_cards_are_made_once(make):
    jobs = make()
    one, two = jobs.submit("a", {}), jobs.submit("a", {})
    jobs.cancel(one.id)
    assert cards(jobs.take(8)) == ["a"]
    three = jobs.submit("a", {})  # comes while it is being made
    assert jobs.take(8) == []
    jobs.finish("a")
    states = [jobs.get(job.id).state for job in (one, two, three)]
    assert states == ["cancelled", "done", "done"]


def test_a_job_that_waits_too_long_has_failed(make):
    jobs = make(deadline=-1.0)
    job = jobs.submit("a", {})
    assert jobs.take(8) == []
    assert "too long" in jobs.get(job.id).error


def test_work_of_a_dead_server_is_taken_over_alone_and_twice_at_most(make, monkeypatch):
    monkeypatch.setattr(queue, "LEASE_S", -1.0)  # every lease is over at once
    dead, living = make(), make()
    jobs = [dead.submit(card, {}) for card in ("a", "b", "c")]
    assert cards(dead.take(8)) == ["a", "b", "c"]
    assert cards(living.take(8)) == ["a"]  # tried before: on its own
    assert cards(living.take(8)) == ["b"]  # a had its two tries
    assert living.get(jobs[0].id).state == "failed"


def test_a_lease_that_is_renewed_holds(make):
    one, other = make(), make()
    one.submit("a", {})
    one.take(8)
    one.renew()
    assert other.take(8) == []


def test_what_is_put_back_is_tried_once_more(make):
    jobs = make()
    job = jobs.submit("a", {})
    jobs.submit("b", {})
    jobs.put_back(cards(jobs.take(8)))
    assert cards(jobs.take(8)) == ["a"]
    jobs.put_back(["a"])
    assert jobs.get(job.id).state == "failed" and "hung" in jobs.get(job.id).error
    assert cards(jobs.take(8)) == ["b"]


def test_what_a_stopping_server_gives_back_has_not_been_tried(make):
    jobs = make()
    told = [jobs.submit(card, {}) for card in ("a", "b")]
    for _ in range(3):
        assert cards(jobs.take(8)) == ["a", "b"]
        jobs.put_back(["a", "b"], counted=False)
    assert [jobs.get(job.id).state for job in told] == ["queued", "queued"]


def test_bundles_do_not_mix(make):
    job = make(bundle="one").submit("a", {})
    assert make(bundle="two").take(8) == [] and make(bundle="two").get(job.id) is None
