"""The sampler is a pure function of (seed, step, rank)."""

from collections import Counter

import pytest

from semiseg.data.samplers import Draw, StepSampler


def sampler(labeled=5, unlabeled=7, batch=2, unlabeled_batch=3, seed=0, start=0, stop=100, **ranks):
    return StepSampler(
        {"labeled": labeled, "unlabeled": unlabeled},
        {"labeled": batch, "unlabeled": unlabeled_batch},
        seed,
        start,
        stop,
        **ranks,
    )


def row(sampler, stream, steps):
    return [draw.member for step in range(steps) for draw in sampler.draws(step) if draw.stream == stream]


def test_a_batch_holds_both_streams_with_slots_counted_from_zero():
    batch = sampler().draws(4)
    assert [(draw.stream, draw.step, draw.slot) for draw in batch] == [
        *(("labeled", 4, slot) for slot in range(2)),
        *(("unlabeled", 4, slot) for slot in range(3)),
    ]
    assert isinstance(batch[0], Draw)


@pytest.mark.parametrize(("stream", "size"), [("labeled", 5), ("unlabeled", 7)])
def test_each_image_comes_once_per_pass_in_a_new_order(stream, size):
    members = row(sampler(), stream, 70)
    passes = [tuple(members[i : i + size]) for i in range(0, len(members) - size + 1, size)]
    assert all(sorted(p) == list(range(size)) for p in passes)
    assert len(set(passes)) > len(passes) // 2


@pytest.mark.parametrize(("labeled", "batch"), [(5, 2), (3, 4), (1, 2), (64, 8)])
def test_two_ranks_see_what_one_with_twice_the_batch_sees(labeled, batch):
    one = sampler(labeled, batch=2 * batch, unlabeled_batch=6)
    pair = [sampler(labeled, batch=batch, rank=rank, world_size=2) for rank in range(2)]
    for step in range(20):
        together = sorted(pair[0].draws(step) + pair[1].draws(step))
        assert together == sorted(one.draws(step))


def test_a_stream_shorter_than_the_batch_wraps_evenly():
    short = sampler(labeled=2, batch=5)
    assert Counter(row(short, "labeled", 2)) == {0: 5, 1: 5}
    assert all(len([d for d in short.draws(step) if d.stream == "labeled"]) == 5 for step in range(3))


def test_resuming_at_a_step_gives_the_same_draws():
    whole, resumed = list(sampler(stop=12)), list(sampler(start=7, stop=12))
    assert resumed == whole[7:]
    assert len(whole) == 12
    backwards = [sampler(stop=12).draws(step) for step in reversed(range(12))]
    assert backwards[::-1] == whole


def test_the_streams_do_not_depend_on_one_another():
    both = sampler(labeled=7, unlabeled=7)
    other = sampler(labeled=7, unlabeled=9, unlabeled_batch=4)
    assert row(both, "labeled", 30) == row(other, "labeled", 30)
    assert row(both, "labeled", 21) != row(both, "unlabeled", 21)[:42]
    alone = StepSampler({"labeled": 7}, {"labeled": 2, "unlabeled": 3}, 0, 0, 30)
    assert row(alone, "labeled", 30) == row(both, "labeled", 30)


def test_the_seed_changes_the_draws():
    assert row(sampler(64, seed=1), "labeled", 30) != row(sampler(64, seed=2), "labeled", 30)


def test_the_draws_of_a_seed_stay_what_they_are():
    """Runs that are resumed after an update go on with the same images."""
    assert row(sampler(seed=3), "labeled", 5) == [4, 2, 1, 3, 0, 3, 1, 4, 0, 2]
