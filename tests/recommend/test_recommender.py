"""The recommendation teacher on a graph of twelve entities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmd.artifacts import ArtifactStore
from mmd.errors import ArtifactError, ConfigError
from mmd.recommend.contexts import ContextMaker, context_words, title_words
from mmd.recommend.graph import ItemGraph
from mmd.recommend.recommender import (
    Recommender,
    build_recommender,
    item_log_probs,
    load_recommender,
    mentions_to_learn,
    save_recommender,
)
from mmd.recommend.recommender_task import RecommenderTask
from mmd.recommend.settings import ConversationSettings, RecommenderSettings, StepSettings
from mmd.recommend.training import Training
from mmd.recommend.types import Context, LinkedTurn, MentionSample
from mmd.schema import Speaker

N_ITEMS, N_ENTITIES = 8, 12
CONVERSATIONS = ConversationSettings(min_word_count=1, context_turns=3)
SETTINGS = RecommenderSettings(
    dim=16,
    bases=2,
    dropout=0.0,
    label_smoothing=0.0,
    steps=StepSettings(batch=16, epochs=40, learning_rate=2e-2, warmup=0, patience=0, min_steps=0, validate_every=10),
)
NOTHING = Context((), (), ())


def toy_graph() -> ItemGraph:
    """Item n belongs to genre n % 4 (entities 8 to 11), and follows item n - 1."""
    genres = [(n, 0, N_ITEMS + n % 4) for n in range(N_ITEMS)]
    follows = [(n, 1, n - 1) for n in range(1, N_ITEMS)]
    return ItemGraph(
        entity_ids=tuple(f"e{n}" for n in range(N_ENTITIES)),
        entity_labels=tuple(f"entity {n}" for n in range(N_ENTITIES)),
        relations=("genre", "follows"),
        edges=np.array(sorted(genres + follows), np.int32),
        item_ids=tuple(f"i{n}" for n in range(N_ITEMS)),
        item_titles=tuple(f"Saga {n // 4} part {n} ({1990 + 5 * n})" for n in range(N_ITEMS)),
        item_entities=np.arange(N_ITEMS, dtype=np.int32),
    )


def turn(speaker: Speaker, text: str, *items: int, entities: tuple[int, ...] = ()) -> LinkedTurn:
    return LinkedTurn(speaker, (text, *items), (*items, *entities))


def context(*turns: LinkedTurn) -> Context:
    entities = dict.fromkeys(entity for turn in turns for entity in turn.entities)
    items = dict.fromkeys(item for turn in turns for item in turn.items)
    return Context(turns[-3:], tuple(entities), tuple(items))


def toy_mentions() -> list[MentionSample]:
    """Who likes item n is told item (n + 4) % 8; who asks for a number without an item, the one asked for."""
    samples = []
    for n in range(N_ITEMS):
        asked = context(turn("user", f"I liked it, number{n}", n))
        samples.append(MentionSample(f"a{n}#1.1", f"a{n}", "train", "agent", asked, (n + 4) % N_ITEMS, novel=True))
        named = context(turn("user", f"something like word{n} please"))
        samples.append(MentionSample(f"b{n}#1.1", f"b{n}", "train", "agent", named, n, novel=True))
    return samples


@pytest.fixture(scope="module")
def trained() -> RecommenderTask:
    task = toy_task()
    loop = Training(task, toy_mentions(), SETTINGS.steps, 0)
    loop.train()
    loop.take_best()
    return task


def toy_task(settings: RecommenderSettings = SETTINGS) -> RecommenderTask:
    model = build_recommender(toy_graph(), toy_mentions(), settings, CONVERSATIONS, 0)
    return RecommenderTask(model, toy_mentions(), toy_mentions(), settings, 0)


def logits(model: Recommender, *contexts: Context) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(model.spec.maker()(contexts))
    return found


# ---------------------------------------------------------------- what it answers


def test_it_learns_what_follows_an_item_and_what_follows_words(trained: RecommenderTask) -> None:
    samples = toy_mentions()
    best = trained.scores([sample.context for sample in samples]).argmax(axis=1)
    assert best.tolist() == [sample.item for sample in samples]


def test_probabilities_are_of_items_alone_and_sum_to_one(trained: RecommenderTask) -> None:
    contexts = [NOTHING, *(sample.context for sample in toy_mentions())]
    for temperature in (0.5, 1.0, 2.0):
        found = item_log_probs(trained.model, trained.maker, contexts, temperature)
        assert found.shape == (len(contexts), N_ITEMS)
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-5)


def test_a_higher_temperature_flattens(trained: RecommenderTask) -> None:
    contexts = [toy_mentions()[0].context]
    sharp, flat = (item_log_probs(trained.model, trained.maker, contexts, t)[0] for t in (1.0, 3.0))
    np.testing.assert_allclose(np.log(np.exp(sharp / 3) / np.exp(sharp / 3).sum()), flat, rtol=1e-4)


def test_without_entities_and_words_the_user_is_zero(trained: RecommenderTask) -> None:
    model = trained.model.eval()
    user = model.user(trained.maker([NOTHING]), model.node_states())
    assert user.abs().max() == 0
    torch.testing.assert_close(logits(model, NOTHING)[0], model.item_bias)


def test_padding_changes_nothing(trained: RecommenderTask) -> None:
    short = context(turn("user", "word1"))
    long = context(turn("user", "I liked it, number1", 1, 2, 3), turn("agent", "something like word3 please", 4))
    together = logits(trained.model, short, long, NOTHING)
    for row, alone in enumerate((short, long, NOTHING)):
        torch.testing.assert_close(together[row : row + 1], logits(trained.model, alone))


def test_batches_of_any_size_give_the_same_answers(trained: RecommenderTask) -> None:
    contexts = [sample.context for sample in toy_mentions()]
    whole, small = (item_log_probs(trained.model, trained.maker, contexts, batch=size) for size in (512, 3))
    np.testing.assert_allclose(whole, small, rtol=1e-5, atol=1e-5)  # kernels sum in another order


def test_only_items_mentioned_before_get_the_term_of_repeats(trained: RecommenderTask) -> None:
    said = context(turn("user", "I liked it, number1", 1))
    model = trained.model.eval()
    with_term = logits(model, said)[0]
    kept = model.repeats.by_mark.detach().clone()
    with torch.no_grad():
        model.repeats.by_mark += 0.7
    moved = logits(model, said)[0] - with_term
    with torch.no_grad():
        model.repeats.by_mark.copy_(kept)
    assert moved.nonzero().flatten().tolist() == [1]


# ---------------------------------------------------------------- how it is trained


def test_it_starts_from_popularity_and_from_how_often_items_are_repeated() -> None:
    """Item 0 is mentioned thrice and item 1 once; of four mentions after item 0 by the user, three repeat it.

    Shares with 0.5 added: 3.5, 1.5 and six times 0.5 of 8. The mark's rate is (3 + 0.5) / (4 + 1); the usual logit of
    what was shown is log(3.5 / 8), summed four times over 5.
    """
    said = context(turn("user", "", 0))
    samples = [MentionSample(f"d{n}#1.1", f"d{n}", "train", "agent", said, int(n == 3), novel=n == 3) for n in range(4)]
    model = build_recommender(toy_graph(), samples, SETTINGS, CONVERSATIONS, 0)
    shares = np.array([3.5, 1.5, *[0.5] * 6]) / 8
    np.testing.assert_allclose(model.item_bias.detach().numpy(), np.log(shares), rtol=1e-6)
    expected = np.log(3.5 / 5) - np.log(3.5 / 8) * 4 / 5
    assert 10 * float(model.repeats.by_mark.detach()[1]) == pytest.approx(expected, rel=1e-5)
    assert model.repeats.by_mark.detach()[2:].abs().sum() == 0


def test_equal_seeds_give_equal_trainings() -> None:
    settings = SETTINGS.model_copy(update={"dropout": 0.3})
    found = []
    for _ in range(2):
        task = toy_task(settings)
        Training(task, toy_mentions(), settings.steps.model_copy(update={"epochs": 3}), 5).train()
        found.append(task.scores([NOTHING, toy_mentions()[0].context]))
    np.testing.assert_array_equal(*found)


def test_drawing_all_neighbours_trains_as_the_whole_graph_does() -> None:
    samples = toy_mentions()
    whole, drawn = (toy_task(SETTINGS.model_copy(update={"neighbours": count})) for count in (0, 100))
    for task in (whole, drawn):
        task.loss(task.batch(samples))[0].backward()
    for (name, one), (_, other) in zip(whole.model.named_parameters(), drawn.model.named_parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_drawn_neighbours_differ_by_batch_and_not_by_call() -> None:
    task = toy_task(SETTINGS.model_copy(update={"neighbours": 1}))
    samples = toy_mentions()
    first, again, other = task.batch(samples), task.batch(samples), task.batch(samples[::-1])
    assert torch.equal(first.block.means.rows[1], again.block.means.rows[1])
    assert torch.equal(first.block.columns, again.block.columns)
    assert not torch.equal(first.block.columns, other.block.columns)


def test_all_or_only_novel_mentions_are_learnt() -> None:
    repeated = MentionSample("c#1.1", "c", "train", "agent", context(turn("user", "", 3)), 3, novel=False)
    samples = [*toy_mentions(), repeated]
    novel = SETTINGS.model_copy(update={"targets": "novel"})
    assert mentions_to_learn(samples, SETTINGS) == samples
    assert mentions_to_learn(samples, novel) == samples[:-1]


def test_recalls_of_novel_mentions_leave_out_what_was_mentioned() -> None:
    """Both contexts hold item 3; the model ranks 3, 5 first. Mentions: 3 again, and 5, novel."""
    model = build_recommender(toy_graph(), toy_mentions(), SETTINGS, CONVERSATIONS, 0)
    said = context(turn("user", "", 3))
    held = [
        MentionSample("c#1.1", "c", "train", "agent", said, 3, novel=False),
        MentionSample("c#1.2", "c", "train", "agent", said, 5, novel=True),
        MentionSample("c#1.3", "c", "train", "user", said, 0, novel=True),  # not the agent's: not judged
    ]
    with torch.no_grad():
        model.entities.vectors.zero_()
        model.title_vectors.zero_()
        model.item_bias.copy_(torch.tensor([-20.0, -20, -20, 9, -20, 6, -20, -20]))
    found = RecommenderTask(model.eval(), toy_mentions(), held, SETTINGS, 0).judge()
    assert found["all_r1"] == 0.5
    assert found["all_r10"] == 1
    assert found["novel_open_r1"] == 1
    assert found["score"] == pytest.approx((0.5 + 1 + 1 + 1 + 1 + 1) / 6)


def test_calibration_finds_by_how_much_the_scores_are_too_sure() -> None:
    """Mentions are drawn from half the scores, and from repeats that get 2 more than the model says."""
    model = build_recommender(toy_graph(), toy_mentions(), SETTINGS, CONVERSATIONS, 0).eval()
    said = context(turn("user", "", 3))
    with torch.no_grad():
        model.item_bias.copy_(torch.linspace(-3, 3, N_ITEMS))
        scores, repeats = model.terms(model.spec.maker()([said]), model.node_states())
    scores = 0.5 * scores[0]
    scores[3] += repeats[0, 0] + 2
    drawn = np.random.default_rng(0).choice(N_ITEMS, 4_000, p=torch.softmax(scores.double(), 0).numpy())
    held = [
        MentionSample(f"c{n}#1.1", f"c{n}", "train", "agent", said, int(i), novel=i != 3) for n, i in enumerate(drawn)
    ]
    task = RecommenderTask(model, toy_mentions(), held, SETTINGS, 0)
    task.calibrate()
    assert model.calibration.tolist() == pytest.approx([0.5, 2.0, 0.0], abs=0.12)
    np.testing.assert_allclose(task.scores([said])[0], torch.log_softmax(scores, 0).numpy(), atol=0.1)


def test_without_held_out_mentions_nothing_is_calibrated() -> None:
    task = RecommenderTask(toy_task().model, toy_mentions(), [], SETTINGS, 0)
    assert task.finish() == {}
    assert task.model.calibration.tolist() == [1, 0, 0]
    assert not task.model.training


def test_what_finishing_says_is_what_the_saved_network_is_worth(tmp_path: Path) -> None:
    """A repeat that the network overrates goes down by the calibration: recalls after it differ from those before."""
    model = build_recommender(toy_graph(), toy_mentions(), SETTINGS, CONVERSATIONS, 0)
    said = context(turn("user", "", 3))
    held = [MentionSample(f"c{n}#1.1", f"c{n}", "train", "agent", said, 5, novel=True) for n in range(40)]
    with torch.no_grad():
        model.item_bias.copy_(torch.tensor([-9.0, -9, -9, 3, -9, 2, -9, -9]))
    task = RecommenderTask(model.eval(), toy_mentions(), held, SETTINGS, 0)
    before, after = task.judge(), task.finish()
    assert before["all_r1"] == 0
    assert after["all_r1"] == 1
    store = ArtifactStore(str(tmp_path))
    with store.write("teacher", "toy", settings={}) as writer:
        save_recommender(writer, task.model)
    loaded = load_recommender(store.open("teacher/toy"), toy_graph())
    assert RecommenderTask(loaded.model, toy_mentions(), held, SETTINGS, 0).judge() == after


def test_nothing_to_learn_from_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="build_graph"):
        build_recommender(toy_graph(), [], SETTINGS, CONVERSATIONS, 0)


# ---------------------------------------------------------------- on disk


def test_it_comes_back_from_disk(trained: RecommenderTask, tmp_path: Path) -> None:
    contexts = [NOTHING, *(sample.context for sample in toy_mentions())]
    store = ArtifactStore(str(tmp_path))
    with store.write("teacher", "toy", settings={}) as writer:
        save_recommender(writer, trained.model)
    loaded = load_recommender(store.open("teacher/toy"), toy_graph())
    np.testing.assert_allclose(loaded.item_log_probs(contexts), trained.scores(contexts), atol=1e-6)
    with pytest.raises(ArtifactError, match="another item graph"):
        load_recommender(store.open("teacher/toy"), toy_graph().without_edges())


# ---------------------------------------------------------------- what it reads


def test_marks_say_who_mentioned_it_last_and_how_long_ago() -> None:
    """Of four turns the last three are told apart: item 5 and item 7 were mentioned before, or again later."""
    said = Context(
        turns=(turn("agent", "", 5), turn("user", "", 6, 7), turn("agent", "", 7), turn("user", "", entities=(9,))),
        entities=(5, 6, 7, 9),
        items=(5, 6, 7),
    )
    batch = ContextMaker((), turns=3, max_words=4, max_entities=3)([said])
    assert batch.items.tolist() == [[5, 6, 7]]
    assert batch.item_marks.tolist() == [[0, 3, 5]]  # before; user, 2 turns ago; agent, 1 turn ago: 1 + 3 + 1
    assert batch.entities.tolist() == [[6, 7, 9]]
    assert batch.entity_marks.tolist() == [[3, 5, 1]]


def test_the_last_known_words_of_the_last_turns_are_read() -> None:
    said = Context((turn("user", "old"), turn("agent", "so many new words", 1), turn("user", "old new!")), (), ())
    maker = ContextMaker(("new", "old", "many"), turns=2, max_words=3, max_entities=1)
    assert maker([said]).words.tolist() == [[1, 2, 1]]


def test_words_are_counted_once_a_turn_and_in_training_dialogues_alone() -> None:
    first, second = turn("user", "red red blue"), turn("agent", "blue green", 2)
    samples = [
        MentionSample("a#1.1", "a", "train", "agent", context(first), 1, novel=True),
        MentionSample("a#2.1", "a", "train", "agent", context(first, second), 1, novel=True),
        MentionSample("b#1.1", "b", "test", "agent", context(turn("user", "green green green")), 1, novel=True),
    ]
    assert context_words(samples, min_count=2, most=10) == ("blue", "red")
    assert context_words(samples, min_count=1, most=2) == ("blue", "red")
    assert context_words(samples, min_count=1, most=10) == ("blue", "red", "green")


def test_titles_keep_words_that_others_have_and_the_decade() -> None:
    assert title_words(toy_graph())[0] == ("saga", "0", "part", "1990s")
    assert title_words(toy_graph())[7] == ("saga", "1", "part", "2020s")
