"""The plan of batches."""

from __future__ import annotations

from collections import Counter

import pytest

from mmd.errors import ConfigError
from mmd.retrieval.batches import BatchPlan, BatchRecipe, SampleKey, recipe_for
from mmd.retrieval.settings import TowerSettings, TrainingSettings


def make_plan(texts: int = 6, images: int = 4, seed: int = 0, **recipe: object) -> BatchPlan:
    keys = [SampleKey(f"t{i}", "text", f"text:{i}") for i in range(texts)]
    keys += [SampleKey(f"i{i}", "image", f"image:{i}") for i in range(images)]
    values = {"epochs": 2.0, "batch": 5, "workers": 1, "learning_rate": 1.0, "warmup": 0.5} | recipe
    return BatchPlan(tuple(keys), BatchRecipe(**values), seed)


def test_every_epoch_takes_every_sample_once():
    plan = make_plan()
    assert plan.total_steps == 4
    for first in (0, 2):
        taken = [index for step in range(first, first + 2) for index in plan.samples(step)]
        assert sorted(taken) == list(range(10))
    assert list(plan.samples(0)) != list(plan.samples(2))


def test_an_epochs_end_shares_a_step_with_the_next_ones_beginning():
    """10 samples, 4 a step: steps 0-4 are two epochs, and the third step is half of each."""
    plan = make_plan(batch=4)
    taken = [index for step in range(5) for index in plan.samples(step)]
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))


@pytest.mark.parametrize("fraction", [None, 0.2, 0.8])
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_the_very_batch_of_one(fraction: float | None, workers: int):
    alone, together = (make_plan(workers=n, text_fraction=fraction) for n in (1, workers))
    for step in range(alone.total_steps):
        joined = [index for worker in range(workers) for index in together.own_samples(step, worker)]
        assert joined == list(alone.samples(step))
    assert max(together.shares) - min(together.shares) <= 1
    assert sum(together.shares) == 5


@pytest.mark.parametrize(("fraction", "texts"), [(0.0, 0), (0.2, 1), (0.5, 2), (0.8, 4), (1.0, 5)])
def test_each_batch_has_its_share_of_texts(fraction: float, texts: int):
    """round(fraction x 5); a half rounds to the even number."""
    plan = make_plan(text_fraction=fraction)
    for step in range(plan.total_steps):
        assert sum(plan.keys[index].modality == "text" for index in plan.samples(step)) == texts


@pytest.mark.parametrize(("fraction", "texts"), [(None, 3.0), (0.2, 1.0), (0.8, 4.0), (1.0, 5.0)])
def test_the_intents_weights_follow_what_batches_hold(fraction: float | None, texts: float):
    """6 texts and 4 images, 5 a batch: as they come 3 and 2."""
    assert make_plan(text_fraction=fraction).mean_counts == pytest.approx({"text": texts, "image": 5.0 - texts})


def test_the_smaller_stream_begins_again_before_the_larger_ends():
    """6 texts, 4 images, 1 text and 4 images a step: in 6 steps each text comes once and each image six times."""
    plan = make_plan(text_fraction=0.2, epochs=3)
    counts = Counter(plan.keys[index].id for step in range(6) for index in plan.samples(step))
    assert counts == {**{f"t{i}": 1 for i in range(6)}, **{f"i{i}": 6 for i in range(4)}}
    assert plan.total_steps == 6  # an epoch is as many samples as there are


def test_a_step_depends_on_its_number_and_the_seed_alone():
    assert list(make_plan(text_fraction=0.4).samples(3)) == list(make_plan(text_fraction=0.4).samples(3))
    assert list(make_plan(seed=1).samples(0)) != list(make_plan(seed=2).samples(0))


def test_a_set_smaller_than_the_batch_makes_the_batch_smaller():
    plan = make_plan(texts=2, images=1, batch=128, epochs=4)
    assert plan.batch == 3
    assert plan.total_steps == 4


def test_the_rate_rises_and_falls():
    """Half of 4 steps rise: 1/2, 1; then half a cosine: 1, cos 90° → 1/2."""
    plan = make_plan()
    assert [plan.rate(step) for step in range(4)] == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_epochs_begin_where_their_first_step_does():
    plan = make_plan(batch=4, epochs=3)  # epochs end after 2.5 and 5 steps
    assert [step for step in range(8) if plan.begins_epoch(step)] == [0, 3, 5]
    assert [step for step in range(1, 9) if plan.is_due(step, 1.0)] == [3, 5, 8]


def test_a_plan_without_enough_samples_is_refused():
    with pytest.raises(ConfigError, match="1 training samples for 1 workers"):
        make_plan(texts=1, images=0)
    with pytest.raises(ConfigError, match="3 training samples for 4 workers"):
        make_plan(texts=3, images=0, workers=4)
    with pytest.raises(ConfigError, match=r"text_fraction=0.4: asks for 2 text samples"):
        make_plan(texts=0, images=9, text_fraction=0.4)


def test_models_learn_more_slowly_than_heads():
    training = TrainingSettings()
    assert recipe_for(training, TowerSettings()).learning_rate == 1e-3
    assert recipe_for(training, TowerSettings(text="minilm-l6-v2")).learning_rate == 5e-5
    assert recipe_for(training, TowerSettings(text="minilm-l6-v2", train_text="frozen")).learning_rate == 1e-3
    assert recipe_for(TrainingSettings(learning_rate=0.5), TowerSettings()).learning_rate == 0.5
