"""The classifier that can answer nothing but a label, and the artefact it lives in."""

import json
import shutil
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmd.artifacts import Artifact, ArtifactStore
from mmd.errors import ArtifactError, ModelError
from mmd.intent.mllm import (
    HELD_OUT_FILE,
    INDEX_FILE,
    HeldOutScore,
    MllmClassifier,
    MllmIndex,
    MllmTask,
    calibrate,
    calibrated,
    load_held_out,
    load_mllm_classifiers,
    load_mllm_index,
    local_folder,
    save_held_out,
    save_mllm_index,
    save_mllm_task,
)
from mmd.intent.settings import LoraSettings, PromptSettings
from mmd.intent.types import IntentExample
from mmd.models.lora import add_lora, save_trained
from mmd.models.mllm import Mllm, load_mllm
from mmd.models.settings import ModelSettings
from mmd.schema import Turn

INTENTS = ("refund", "size", "broken")
SCENES = ("order page", "parcel")
TASKS = {"dialogue_intent": INTENTS, "image_scene": SCENES}
BASE = "tiny-llama"


def example(text: str, task: str = "dialogue_intent") -> IntentExample:
    return IntentExample(text, task, None, (Turn("user", text),))


ASKED = [example("I want my money back"), example("is this a large one?"), example("")]


@pytest.fixture(scope="module")
def tiny() -> Mllm:
    return load_mllm(BASE)


@pytest.fixture(scope="module")
def classifier(tiny: Mllm) -> MllmClassifier:
    return MllmClassifier("dialogue_intent", INTENTS, tiny, 2.0, PromptSettings())


def train_lora(folder: Path, seed: int) -> None:
    """An adapter that does something: its updates are drawn at random."""
    mllm = load_mllm(BASE)
    add_lora(mllm, LoraSettings(rank=2), seed)
    torch.manual_seed(seed)
    for name, weight in mllm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    save_trained(mllm, folder, "lora")


def train_full(folder: Path, seed: int) -> None:
    mllm = load_mllm(BASE)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in mllm.model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.01)
    save_trained(mllm, folder, "full")


def index_of(method: str, folders: Sequence[str], base: str = BASE) -> MllmIndex:
    tasks = {
        task: MllmTask(folder=folder, labels=labels, temperature=1.5)
        for (task, labels), folder in zip(TASKS.items(), folders, strict=True)
    }
    return MllmIndex(base=base, method=method, prompt=PromptSettings(max_turns=3), tasks=tasks)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trained")
    for seed, task in enumerate(TASKS):
        train_lora(folder / task, seed)
    train_full(folder / "joint", 5)
    return {name: folder / name for name in (*TASKS, "joint")}


def write(store: ArtifactStore, index: MllmIndex, trained: dict[str, Path], name: str = "it") -> Artifact:
    scores = {
        task: {f"d{i}": HeldOutScore(fold=i % 2, plain=(-1.0 * i, *[-2.0] * (len(labels) - 1)),
                                     hinted=(0.0, *[-50.0] * (len(labels) - 1))) for i in range(3)}
        for task, labels in TASKS.items()
    }  # fmt: skip
    with store.write("adapter", name, settings={"of": uuid.uuid4().hex}) as writer:
        for folder in dict.fromkeys(entry.folder for entry in index.tasks.values()):
            save_mllm_task(writer, folder, trained[folder])
        save_mllm_index(writer, index)
        save_held_out(writer, scores)
    return store.open(f"adapter/{name}")


@pytest.fixture(scope="module")
def adapters(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write(ArtifactStore(str(tmp_path_factory.mktemp("store"))), index_of("lora", list(TASKS)), trained)


# ---------------------------------------------------------------- answers


label_sets = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(str.strip),
    min_size=1,
    max_size=5,
    unique=True,
)


@given(
    texts=st.lists(st.text(max_size=30), min_size=1, max_size=3),
    labels=label_sets,
    hint=st.text(max_size=20),
    temperature=st.floats(0.05, 20),
    seed=st.integers(0, 2),
)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_but_a_label_comes_out(texts: list[str], labels: list[str], hint: str, temperature: float, seed: int):
    """Whatever the weights, prompts and labels: each distribution is over exactly the labels and sums to 1."""
    mllm = _random_model(seed)
    tokens = {tuple(mllm.encoder.answer_ids(label)) for label in labels}
    if len(tokens) < len(labels):
        return  # equal to the tokenizer: refused, see test_likelihood
    asked = MllmClassifier("dialogue_intent", labels, mllm, temperature, PromptSettings())
    for answer in asked.predict_hinted([example(text) for text in texts], [hint] * len(texts)):
        assert answer.labels == tuple(labels)
        assert answer.best[0] in labels
        assert min(answer.values) >= 0
        assert sum(answer.values) == pytest.approx(1, abs=1e-9)


_models: dict[int, Mllm] = {}


def _random_model(seed: int) -> Mllm:
    if seed not in _models:
        mllm = load_mllm(BASE)
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in mllm.model.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.2)
        _models[seed] = mllm
    return _models[seed]


def test_an_empty_hint_is_no_hint(classifier: MllmClassifier):
    assert classifier.predict_hinted(ASKED, ["", "", ""]) == classifier.predict(ASKED)
    hinted = classifier.predict_hinted(ASKED, ["refund (7 of 8)", "", ""])
    assert hinted[0] != classifier.predict(ASKED)[0]
    np.testing.assert_allclose(hinted[1].values, classifier.predict(ASKED)[1].values, atol=1e-5)


def test_prompts_with_a_hint_have_their_own_temperature(tiny: Mllm):
    cooled = MllmClassifier("dialogue_intent", INTENTS, tiny, 2.0, PromptSettings(), hinted_temperature=8.0)
    hints = ["refund (7 of 8)", "", ""]
    scores = cooled.log_likelihoods(ASKED, hints)
    assert cooled.predict_hinted(ASKED, hints) == calibrated(scores, INTENTS, [8.0, 2.0, 2.0])
    assert cooled.predict_hinted(ASKED, ["", "", ""]) == cooled.predict(ASKED)


def test_no_examples_give_no_answers(classifier: MllmClassifier):
    assert classifier.predict([]) == []
    assert classifier.log_likelihoods([]).shape == (0, len(INTENTS))


def test_hints_must_be_as_many_as_examples(classifier: MllmClassifier):
    with pytest.raises(ValueError, match="zip"):
        classifier.predict_hinted(ASKED, ["one"])


def test_a_model_without_eyes_needs_no_pictures(classifier: MllmClassifier):
    assert not classifier.needs_pictures
    seeing = MllmClassifier("dialogue_intent", INTENTS, load_mllm("tiny-qwen2-vl"), 1.0, PromptSettings())
    assert seeing.needs_pictures
    blindfolded = MllmClassifier("dialogue_intent", INTENTS, seeing.mllm, 1.0, PromptSettings(max_images=0))
    assert not blindfolded.needs_pictures


# ---------------------------------------------------------------- calibration


def test_probabilities_are_the_tempered_softmax():
    """Log-likelihoods 0 and -2 at temperature 2: e^0 / (e^0 + e^-1) = 0.731."""
    (row,) = calibrated(np.array([[0.0, -2.0]]), ("a", "b"), 2.0)
    assert row.values == pytest.approx((0.7311, 0.2689), abs=1e-4)


def test_rows_may_have_temperatures_of_their_own():
    """Log-likelihoods 0 and -2 at temperatures 2 and 1: 1 / (1 + e^-1) and 1 / (1 + e^-2)."""
    rows = calibrated(np.array([[0.0, -2.0]] * 2), ("a", "b"), [2.0, 1.0])
    assert [row.values[0] for row in rows] == pytest.approx([0.7311, 0.8808], abs=1e-4)


def test_overconfident_scores_are_cooled_to_their_accuracy():
    """Scores that always say 'a' by 10 nats, right three times in four: the temperature makes that p = 3/4.

    ln 3 = 10 / T, so T = 9.10.
    """
    scores = np.tile([0.0, -10.0], (4, 1))
    temperature = calibrate(scores, ("a", "b"), ["a", "a", "a", "b"])
    assert temperature == pytest.approx(10 / np.log(3), rel=1e-3)


def test_without_held_out_scores_nothing_is_tempered():
    assert calibrate(np.zeros((0, 2)), ("a", "b"), []) == 1.0


def test_a_gold_label_of_another_task_is_refused():
    with pytest.raises(ValueError, match="'c' is not one of the task's"):
        calibrate(np.zeros((1, 2)), ("a", "b"), ["c"])


# ---------------------------------------------------------------- the artefact


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT 0.21 with transformers 5.23
def test_saved_classifiers_answer_as_before(adapters: Artifact, trained: dict[str, Path]):
    from peft import PeftModel

    loaded = load_mllm_classifiers(adapters)
    assert loaded.keys() == TASKS.keys()
    for task, labels in TASKS.items():
        plain = load_mllm(BASE)
        plain.model = PeftModel.from_pretrained(plain.model, str(trained[task])).eval()
        expected = MllmClassifier(task, labels, plain, 1.5, PromptSettings(max_turns=3)).predict(ASKED)
        answers = loaded[task].predict(ASKED)
        for answer, wanted in zip(answers, expected, strict=True):
            assert answer.labels == labels
            np.testing.assert_allclose(answer.values, wanted.values, atol=1e-5)


def test_tasks_share_one_base(adapters: Artifact):
    intents, scenes = load_mllm_classifiers(adapters).values()
    assert intents.mllm is scenes.mllm
    assert intents.predict(ASKED) == intents.predict(ASKED)
    before = intents.predict(ASKED)
    scenes.predict(ASKED)
    assert intents.predict(ASKED) == before


def test_threads_that_ask_different_tasks_do_not_mix_adapters(adapters: Artifact):
    loaded = load_mllm_classifiers(adapters)
    alone = {task: classifier.predict(ASKED) for task, classifier in loaded.items()}
    wrong: list[str] = []

    def ask(task: str) -> None:
        wrong.extend(task for _ in range(8) if loaded[task].predict(ASKED) != alone[task])

    threads = [threading.Thread(target=ask, args=(task,)) for task in (*TASKS, *TASKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_whole_models_load_too_and_joint_tasks_share_one(tmp_path: Path, trained: dict[str, Path]):
    artifact = write(ArtifactStore(str(tmp_path)), index_of("full", ["joint", "joint"]), trained)
    intents, scenes = load_mllm_classifiers(artifact).values()
    assert intents.mllm is scenes.mllm
    assert intents.mllm.dtype == torch.float32  # the base is tiny, so its fine-tuned weights are, too
    fresh = MllmClassifier("image_scene", SCENES, load_mllm(str(trained["joint"]), ModelSettings(dtype="float32")), 1.5,
                           PromptSettings(max_turns=3))  # fmt: skip
    assert scenes.predict(ASKED) == fresh.predict(ASKED)


def test_a_remote_artefact_is_copied_into_the_cache_once(tmp_path: Path, trained: dict[str, Path]):
    store = ArtifactStore(f"memory://store-{uuid.uuid4().hex}")
    artifact = write(store, index_of("lora", list(TASKS)), trained)
    settings = ModelSettings(cache_dir=str(tmp_path / "cache"))
    folder = local_folder(artifact, "image_scene", settings)
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert folder.is_relative_to(tmp_path / "cache" / "adapters" / artifact.manifest.digest)
    (folder / "adapter_config.json").touch()
    stamp = (folder / "adapter_config.json").stat().st_mtime_ns
    assert local_folder(artifact, "image_scene", settings) == folder
    assert (folder / "adapter_config.json").stat().st_mtime_ns == stamp
    assert [p.name for p in folder.parent.iterdir()] == ["image_scene"]


def test_held_out_scores_come_back_calibrated(adapters: Artifact):
    """Scores 0, -2, -2 at temperature 1.5: e^0 / (1 + 2 e^(-4/3)) = 0.655."""
    held_out = load_held_out(adapters, "dialogue_intent")
    assert held_out is not None
    assert held_out.plain["d0"].labels == INTENTS
    assert held_out.plain["d0"].values[0] == pytest.approx(1 / (1 + 2 * np.exp(-4 / 3)))
    assert held_out.hinted["d2"].best == ("refund", pytest.approx(1, abs=1e-9))
    assert load_held_out(adapters, "another task") is None


def test_held_out_scores_with_a_hint_are_calibrated_by_their_own_temperature(tmp_path: Path, trained: dict[str, Path]):
    """Scores 0, -50, -50 at temperature 25: e^0 / (1 + 2 e^-2) = 0.787; without a hint, the plain temperature."""
    index = index_of("lora", list(TASKS))
    tasks = {t: entry.model_copy(update={"hinted_temperature": 25.0}) for t, entry in index.tasks.items()}
    artifact = write(ArtifactStore(str(tmp_path)), index.model_copy(update={"tasks": tasks}), trained)
    held_out = load_held_out(artifact, "dialogue_intent")
    assert held_out is not None
    assert held_out.plain["d0"].values[0] == pytest.approx(1 / (1 + 2 * np.exp(-4 / 3)))
    assert held_out.hinted["d0"].values[0] == pytest.approx(1 / (1 + 2 * np.exp(-2)))
    classifier = load_mllm_classifiers(artifact)["dialogue_intent"]
    assert isinstance(classifier, MllmClassifier)
    assert (classifier.temperature, classifier.hinted_temperature) == (1.5, 25.0)


def test_an_index_without_a_temperature_for_hints_uses_the_plain_one(adapters: Artifact):
    content = json.loads(adapters.read_bytes("mllm.json"))
    for entry in content["tasks"].values():
        del entry["hinted_temperature"]  # as artefacts had it before
    assert MllmIndex.model_validate(content) == load_mllm_index(adapters)


def test_a_missing_base_names_the_ways_to_get_it(tmp_path: Path, trained: dict[str, Path]):
    index = index_of("lora", list(TASKS), base="Qwen/Qwen2-VL-7B-Instruct")
    artifact = write(ArtifactStore(str(tmp_path)), index, trained)
    with pytest.raises(ModelError, match=r"(?s)Qwen/Qwen2-VL-7B-Instruct.*ackaged.*folder.*models.allow_hub=true"):
        load_mllm_classifiers(artifact)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, trained: dict[str, Path]):
    artifact = write(ArtifactStore(str(tmp_path)), index_of("lora", list(TASKS), base="tiny-qwen2-vl"), trained)
    with pytest.raises(ModelError, match="does not fit 'tiny-qwen2-vl'"):
        load_mllm_classifiers(artifact)


def broken(tmp_path: Path, trained: dict[str, Path], change: dict[str, object], file: str = INDEX_FILE) -> Artifact:
    store = ArtifactStore(str(tmp_path))
    artifact = write(store, index_of("lora", list(TASKS)), trained)
    path = Path(artifact.path(file))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return store.open(artifact.ref, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format 99, this mmd reads 1"),
        ({"method": "magic"}, "malformed"),
        ({"tasks": {"t": {"folder": "../elsewhere", "labels": ["a"], "temperature": 1}}}, "malformed"),
        ({"tasks": {"t": {"folder": "elsewhere", "labels": ["a"], "temperature": 1}}}, "no weights elsewhere/"),
        ({"trust_remote_code": True}, "malformed"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, trained: dict[str, Path], change: dict[str, object], message: str):
    with pytest.raises(ArtifactError, match=message):
        load_mllm_index(broken(tmp_path, trained, change))


def test_held_out_scores_of_other_labels_are_refused(tmp_path: Path, trained: dict[str, Path]):
    scores = {"dialogue_intent": {"d0": {"fold": 0, "plain": [-1.0], "hinted": [-1.0]}}}
    with pytest.raises(ArtifactError, match="scores other than 3 labels of task dialogue_intent"):
        load_held_out(broken(tmp_path, trained, scores, HELD_OUT_FILE), "dialogue_intent")


def test_other_artefacts_are_refused(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    with store.write("report", "it", settings={}) as writer:
        writer.write_json("a.json", {})
    with pytest.raises(ArtifactError, match="is no artefact of kind adapter; open adapter/NAME"):
        load_mllm_index(store.open("report/it"))


def test_an_artefact_without_held_out_scores_has_none(tmp_path: Path, trained: dict[str, Path]):
    store = ArtifactStore(str(tmp_path))
    shutil.copytree(trained["image_scene"], tmp_path / "copy")
    index = index_of("lora", list(TASKS))
    with store.write("adapter", "it", settings={}) as writer:
        for folder in TASKS:
            save_mllm_task(writer, folder, trained[folder])
        save_mllm_index(writer, index)
    assert load_held_out(store.open("adapter/it"), "image_scene") is None
