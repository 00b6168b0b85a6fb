"""Fine-tuning: what is trained on, in which order, at which rate; and that nothing but the samples decides losses."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmd.errors import ArtifactError, ConfigError, ModelError
from mmd.intent.engines import PlainEngine, parts_of
from mmd.intent.finetune import (
    LAST,
    Collator,
    Finetuned,
    Finetuning,
    HeldOutJudge,
    finetune_plain,
    key_of,
    load_state,
    prepare_mllm,
    read_outcome,
    restore_optimizer,
    restore_weights,
)
from mmd.intent.mllm import MllmTask
from mmd.intent.samples import ORIGINAL, Sample
from mmd.intent.settings import FinetuneSettings, IntentSettings, LoraSettings
from mmd.intent.training_plan import (
    Recipe,
    SampleKey,
    StepPlan,
    TrainingRun,
    divide,
    plan_runs,
    recipe_for,
    serving_runs,
    step_tokens,
)
from mmd.intent.types import IntentExample
from mmd.models.settings import ModelSettings
from mmd.models.threads import torch_threads
from mmd.schema import Turn

RUN = TrainingRun("intent-fold0", ("intent",), 0)
WORDS = {"refund": "i want my money back", "season": "can i wear this in summer", "which size fits": "170 cm tall"}
LABELS = {"intent": tuple(WORDS)}
TINY = ModelSettings(mllm="tiny-llama")
RECIPE = Recipe("full", 1.0, 0.0, 0.0, 1.0, epochs=1.0, batch=2, accumulate=1, workers=1)


def make_samples(n: int = 12, *, copies: bool = False) -> list[Sample]:
    labels = list(WORDS)
    out = []
    for i in range(n):
        label = labels[i % 3]
        example = IntentExample(f"d{i:02d}", "intent", label, (Turn("user", f"{WORDS[label]} {i % 4}"),))
        hint = f"{label} (5 of 6)" if i % 2 else ""
        out.append(Sample(f"d{i:02d}", f"d{i:02d}", ORIGINAL, i // 3 % 4, hint, example))
        if copies:
            out.append(Sample(f"d{i:02d}-c", f"d{i:02d}", "frame", i // 3 % 4, hint, example))
    return out


def make_keys(n: int) -> tuple[SampleKey, ...]:
    return tuple(SampleKey("intent", f"s{i:03d}", f"s{i:03d}", ORIGINAL, "ab"[i % 2], i % 4) for i in range(n))


def make_settings(**finetune: object) -> IntentSettings:
    return IntentSettings(finetune=FinetuneSettings(**({"batch": 4, "epochs": 2.0} | finetune)))  # type: ignore[arg-type]


def losses(result: Finetuned) -> list[float]:
    return [row["loss"] for row in result.state.history]


# ---------------------------------------------------------------- runs and samples


def test_each_task_gets_a_run_a_held_out_fold_and_a_refit_on_demand():
    runs = plan_runs(FinetuneSettings(held_out_folds=2, refit=True), ["b", "a"], folds=5)
    assert [run.name for run in runs] == ["a-fold0", "a-fold1", "a-all", "b-fold0", "b-fold1", "b-all"]
    assert {model: run.name for model, run in serving_runs(runs).items()} == {"a": "a-all", "b": "b-all"}


def test_without_a_refit_the_model_that_misses_fold_0_answers():
    runs = plan_runs(FinetuneSettings(held_out_folds=2), ["a"], folds=5)
    assert serving_runs(runs)["a"].name == "a-fold0"


def test_a_joint_run_trains_all_tasks_and_nothing_held_out_trains_once_on_everything():
    runs = plan_runs(FinetuneSettings(tasks="joint", held_out_folds=0), ["b", "a"], folds=5)
    assert [(run.name, run.tasks, run.held_out_fold) for run in runs] == [("joint-all", ("a", "b"), None)]


@pytest.mark.parametrize("task", ["user intent", "intent.v2", "a/b", "../up", "意图", "_x"])
def test_any_task_gets_a_folder_of_its_own_whatever_its_name(task: str):
    """A path, the adapter's name (a torch module's, without dots) and the artefact's index all take it."""
    [run, other] = plan_runs(FinetuneSettings(), [task, f"{task}2"], folds=5)
    assert run.tasks != other.tasks
    assert run.model != other.model
    assert run.name == f"{run.model}-fold0"
    assert re.fullmatch(r"task-[0-9a-f]{12}", run.model)
    assert MllmTask(folder=run.model, labels=("l",), temperature=1.0).folder == run.model


def test_more_held_out_folds_than_folds_are_refused():
    with pytest.raises(ConfigError, match=r"held_out_folds=6.*intent.folds=5"):
        plan_runs(FinetuneSettings(held_out_folds=6), ["a"], folds=5)


def test_children_of_held_out_dialogues_never_train():
    keys = [key_of(sample) for sample in make_samples(copies=True)]
    division = divide(keys, RUN)
    held_out = {key.parent_id for key in keys if key.fold == 0}
    assert held_out == {"d00", "d01", "d02"}
    assert not held_out & {key.parent_id for key in division.train}
    assert {key.id for key in division.held_out} == held_out  # originals only
    assert len(division.train) == 18  # 9 originals, 9 copies


def test_a_child_with_a_wrong_fold_is_held_out_by_its_parent():
    keys = [replace(key_of(s), fold=3 if s.made_by != ORIGINAL else s.fold) for s in make_samples(copies=True)]
    assert not {"d00", "d01", "d02"} & {key.parent_id for key in divide(keys, RUN).train}


def test_a_joint_run_trains_nothing_of_a_dialogue_that_one_task_holds_out():
    keys = [SampleKey("a", "d0", "d0", ORIGINAL, "x", 0), SampleKey("b", "d0", "d0", ORIGINAL, "y", 1)]
    keys += [SampleKey("b", "d1", "d1", ORIGINAL, "y", 1)]
    division = divide(keys, TrainingRun("joint-fold0", ("a", "b"), 0))
    assert [key.id for key in division.train] == ["d1"]


def test_a_run_without_samples_says_so():
    with pytest.raises(ArtifactError, match="no training sample outside fold 0"):
        divide([SampleKey("intent", "d0", "d0", ORIGINAL, "x", 0)], RUN)


@pytest.mark.parametrize(("base", "method", "rate"), [("tiny-qwen2-vl", "full", 1e-3), ("gemma3-270m", "lora", 2e-4)])
def test_random_weights_are_trained_in_full_and_pretrained_ones_adapted(base: str, method: str, rate: float):
    recipe = recipe_for(FinetuneSettings(), base)
    assert (recipe.method, recipe.learning_rate) == (method, rate)


def test_random_weights_train_for_a_number_of_steps_unless_epochs_are_given():
    plan = StepPlan(make_keys(64), recipe_for(FinetuneSettings(), "tiny-qwen2-vl"), 0, 0.0)
    assert (plan.global_batch, plan.total_steps) == (32, 1100)
    assert StepPlan(plan.keys, recipe_for(FinetuneSettings(epochs=3), "tiny-qwen2-vl"), 0, 0.0).total_steps == 6
    assert StepPlan(plan.keys, recipe_for(FinetuneSettings(), "gemma3-270m"), 0, 0.0).total_steps == 32  # 4 x 64 / 8


# ---------------------------------------------------------------- order and rate


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 5), accumulate=st.integers(1, 3), seed=st.integers(0, 9))
def test_every_epoch_takes_every_sample_once(n: int, batch: int, accumulate: int, seed: int):
    plan = StepPlan(make_keys(n), replace(RECIPE, batch=batch, accumulate=accumulate), seed, 0.0)
    for epoch in range(2):
        assert sorted(plan.sample(epoch * n + i) for i in range(n)) == list(range(n))


@settings(max_examples=30, deadline=None)
@given(workers=st.integers(1, 4), accumulate=st.integers(1, 3), step=st.integers(0, 5))
def test_workers_share_a_step_without_gaps_or_overlaps(workers: int, accumulate: int, step: int):
    plan = StepPlan(make_keys(50), replace(RECIPE, workers=workers, accumulate=accumulate), 0, 0.0)
    taken = [
        (position, worker)
        for worker in range(workers)
        for micro in range(accumulate)
        for position in plan.micro_positions(step, micro, worker)
    ]
    assert sorted(position for position, _ in taken) == list(plan.step_positions(step))
    assert all(plan.worker_of(position) == worker for position, worker in taken)


def test_a_step_takes_the_same_samples_whoever_works():
    one = StepPlan(make_keys(30), replace(RECIPE, batch=8), 5, 0.0)
    four = StepPlan(make_keys(30), replace(RECIPE, batch=2, workers=2, accumulate=2), 5, 0.0)
    assert one.total_steps == four.total_steps == 4  # 30 / 8 = 3.75
    for step in range(4):
        assert [one.sample(p) for p in one.step_positions(step)] == [four.sample(p) for p in four.step_positions(step)]


def test_the_seed_decides_the_order():
    orders = [[StepPlan(make_keys(30), RECIPE, seed, 0.0).sample(p) for p in range(30)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_the_rate_rises_and_falls_by_half_a_cosine():
    """10 steps, 2 of them rising to 1.0; then (1 + cos(pi k/8)) / 2 for k = 0 … 7."""
    plan = StepPlan(make_keys(20), replace(RECIPE, warmup=0.2), 0, 0.0)
    assert plan.total_steps == 10
    assert [plan.rate(step) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert plan.rate(6) == pytest.approx(0.5)
    assert plan.rate(9) == pytest.approx((1 + math.cos(math.pi * 7 / 8)) / 2)


def test_hints_are_told_at_about_their_share_of_positions():
    never, some, always = (StepPlan(make_keys(500), RECIPE, 0, share) for share in (0.0, 0.3, 1.0))
    told = Counter(some.tells_hint(p) for p in range(2000))
    assert 500 < told[True] < 700
    assert not any(never.tells_hint(p) for p in range(100))
    assert all(always.tells_hint(p) for p in range(100))


def test_validations_come_at_every_multiple_and_at_the_end():
    """20 samples, 6 a step, 3 epochs = 10 steps; epochs end within steps 4, 7 and 10."""
    plan = StepPlan(make_keys(20), replace(RECIPE, batch=6, epochs=3.0), 0, 0.0)
    assert [step for step in range(1, 11) if plan.is_due(step, 1.0)] == [4, 7, 10]
    assert [step for step in range(1, 11) if plan.is_due(step, 2.0)] == [7, 10]


def test_a_steps_answer_tokens_are_counted_over_all_workers():
    plan = StepPlan(make_keys(4), replace(RECIPE, batch=2, workers=2), 0, 0.0)
    assert step_tokens(plan, 0, {"a": 3, "b": 5}) == 16  # labels a, b, a, b


# ---------------------------------------------------------------- training


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


@pytest.fixture(scope="module")
def plain() -> Finetuned:
    return finetune_plain(make_samples(), RUN, LABELS, make_settings(), TINY, 0)


def test_the_loss_falls_and_the_held_out_fold_is_judged(plain: Finetuned):
    assert losses(plain)[-1] < losses(plain)[0]
    assert plain.state.validations[-1]["step"] == len(losses(plain)) == 4  # 2 epochs of 9 samples, 4 a step: 4.5 → 4
    assert set(plain.held_out["intent"]) == {"d00", "d01", "d02"}
    assert all(len(row.plain) == len(row.hinted) == 3 for row in plain.held_out["intent"].values())


def test_a_hint_changes_what_the_model_says_only_where_there_is_one(plain: Finetuned):
    rows = plain.held_out["intent"]
    assert rows["d00"].plain == rows["d00"].hinted
    assert rows["d01"].plain != rows["d01"].hinted


def test_equal_seeds_train_equally_and_other_seeds_do_not(plain: Finetuned):
    again = finetune_plain(make_samples(), RUN, LABELS, make_settings(), TINY, 0)
    assert losses(again) == losses(plain)
    other = finetune_plain(make_samples(), RUN, LABELS, make_settings(), TINY, 1)
    assert losses(other) != losses(plain)


@pytest.mark.parametrize("broken", [(math.nan, 1.0), (0.5, math.inf)])
def test_a_training_that_diverges_ends_with_the_way_out(monkeypatch: pytest.MonkeyPatch, broken: tuple[float, float]):
    answers = iter([(0.7, 1.0), broken])
    monkeypatch.setattr("mmd.intent.engines.PlainEngine.step", lambda *_: next(answers))
    with pytest.raises(ModelError, match=r"diverged in step 2 of 4 .*lower intent\.finetune\.learning_rate"):
        finetune_plain(make_samples(), RUN, LABELS, make_settings(), TINY, 0)


@pytest.mark.parametrize(
    "parts", [{"batch": 2, "accumulate": 2}, {"batch": 2, "workers": 2}, {"batch": 1, "workers": 4}]
)
def test_a_step_cut_into_micro_batches_is_the_same_step(plain: Finetuned, parts: dict[str, int]):
    """Labels of 2 to 5 tokens: a mean of the micro-batches' means would differ by more than a percent."""
    cut = finetune_plain(make_samples(), RUN, LABELS, make_settings(**parts), TINY, 0)
    assert losses(cut) == pytest.approx(losses(plain), rel=1e-4)


def test_only_the_answers_tokens_are_learnt():
    """The loss of a batch is minus the mean log-probability of its answers' tokens, ends included."""
    import torch

    samples = make_samples(6)
    mllm = prepare_mllm("tiny-llama", recipe_for(FinetuneSettings(), "tiny-llama"), IntentSettings(), TINY, 0)
    plan = StepPlan(tuple(map(key_of, samples)), replace(RECIPE, batch=6), 0, 0.0)
    batch = Collator(mllm.encoder, plan, LABELS, IntentSettings().prompt)(list(enumerate(samples)))
    asked = batch["labels"] != -100
    for row, sample in enumerate(samples):
        answer = mllm.encoder.answer_ids(str(sample.example.label))
        assert batch["labels"][row][asked[row]].tolist() == answer
    with torch.no_grad():
        logits = mllm.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    scores = logits[:, :-1].log_softmax(-1)
    by_hand = -scores[asked[:, 1:], batch["labels"][:, 1:][asked[:, 1:]]].mean()
    loss, _ = PlainEngine(mllm, RECIPE).step(parts_of(mllm, [(batch, 1.0)]), 0.0)
    assert loss == pytest.approx(float(by_hand), rel=1e-5)


def make_loop(intent: IntentSettings, checkpoint: Path | None = None) -> tuple[Finetuning, Iterator[object]]:
    """A run in one process whose checkpoints can be taken; from a checkpoint if one is given."""
    samples = {key_of(sample): sample for sample in make_samples()}
    recipe = recipe_for(intent.finetune, "tiny-llama")
    division = divide(list(samples), RUN)
    plan = StepPlan(division.train, recipe, 0, intent.finetune.hint_share)
    mllm = prepare_mllm("tiny-llama", recipe, intent, TINY, 0)
    state, best = load_state(checkpoint) if checkpoint else (None, None)
    if checkpoint:
        restore_weights(mllm, checkpoint)
    engine = PlainEngine(mllm, recipe)
    if checkpoint:
        restore_optimizer(engine, checkpoint)
    judge = HeldOutJudge(mllm, [samples[key] for key in division.held_out], LABELS, intent.prompt)
    loop = Finetuning(plan, mllm, engine, judge, validate_every=1.0, state=state, best=best)
    collate = Collator(mllm.encoder, plan, LABELS, intent.prompt)
    steps = range(loop.state.step, plan.total_steps)
    return loop, iter(
        [collate([(p, samples[plan.keys[plan.sample(p)]]) for p in plan.micro_positions(s, 0, 0)]) for s in steps]
    )


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_resumed_run_is_the_uninterrupted_one_dropout_included(tmp_path: Path, method: str):
    intent = make_settings(method=method, epochs=3.0, lora=LoraSettings(rank=4, dropout=0.3))
    loop, batches = make_loop(intent)
    loop.train(batches, checkpoint_every=3, on_checkpoint=lambda at: at.save(tmp_path / str(at.state.step)))
    scores = loop.finish(tmp_path / "whole", method)  # type: ignore[arg-type]
    again, rest = make_loop(intent, tmp_path / "3")
    assert again.state.step == 3
    again.train(rest)
    assert again.finish(tmp_path / "resumed", method) == scores  # type: ignore[arg-type]
    assert again.state == loop.state
    assert read_outcome(tmp_path / "resumed") == read_outcome(tmp_path / "whole")


def test_a_checkpoint_of_more_workers_is_refused(tmp_path: Path):
    loop, _ = make_loop(make_settings())
    loop.save(tmp_path)
    (tmp_path / "optimizer-0-of-1.safetensors").rename(tmp_path / "optimizer-0-of-2.safetensors")
    with pytest.raises(ModelError, match="another number of workers"):
        restore_optimizer(loop.engine, tmp_path)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT 0.21 on transformers 5.23
def test_an_adapter_loads_with_plain_peft(tmp_path: Path):
    import torch
    from peft import PeftModel

    from mmd.models.mllm import load_mllm

    intent = make_settings(method="lora", learning_rate=0.01, lora=LoraSettings(rank=4))
    loop, batches = make_loop(intent)
    loop.train(batches)
    loop.finish(tmp_path, "lora")
    base = load_mllm("tiny-llama", TINY)
    tokens = torch.tensor([[5, 6, 7]])
    loop.mllm.model.eval()
    with torch.no_grad():
        before = base.model(input_ids=tokens).logits
        expected = loop.mllm.model(input_ids=tokens).logits
        adapted = PeftModel.from_pretrained(base.model, str(tmp_path / LAST)).eval()
        found = adapted(input_ids=tokens).logits
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(before, found)


def test_recomputed_activations_change_nothing(plain: Finetuned):
    again = finetune_plain(make_samples(), RUN, LABELS, make_settings(recompute=True), TINY, 0)
    assert losses(again) == pytest.approx(losses(plain), rel=1e-5)


def test_no_base_model_is_told():
    with pytest.raises(ConfigError, match=r"models\.mllm"):
        finetune_plain(make_samples(), RUN, LABELS, make_settings(), ModelSettings(), 0)
