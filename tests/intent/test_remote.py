"""The engine with its large model on a server: the same answers, and rules and probe where the server fails."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from mmd.artifacts import Artifact, ArtifactStore
from mmd.errors import ModelError
from mmd.intent.engine import IntentEngine, IntentQuery
from mmd.intent.mllm import load_mllm_classifiers, load_mllm_index, local_folder
from mmd.intent.online import OnlineSettings
from mmd.intent.remote import remote_classifiers, served_name
from mmd.intent.types import ImageFacts, IntentExample
from mmd.models.lora import load_trained
from mmd.models.settings import ModelSettings
from mmd.schema import Dialogue, Turn
from tests.models.language_server import LanguageServer, language_server

INTENT, SCENE = "dialogue_intent", "image_scene"


@pytest.fixture(scope="module")
def store(mllm_store: Path) -> ArtifactStore:
    return ArtifactStore(str(mllm_store))


@pytest.fixture
def store_copy(mllm_store: Path, tmp_path: Path) -> ArtifactStore:
    shutil.copytree(mllm_store, tmp_path / "store")
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture(scope="module")
def adapter(store: ArtifactStore) -> Artifact:
    return store.open("adapter/tiny")


@pytest.fixture(scope="module")
def running(adapter: Artifact) -> Iterator[LanguageServer]:
    """Serves what an adapter artefact holds by the names of its folders, as vLLM does with --lora-modules."""
    settings = ModelSettings()
    index = load_mllm_index(adapter)
    folders = {entry.folder: local_folder(adapter, entry.folder, settings) for entry in index.tasks.values()}
    with language_server() as server:
        for folder, mllm in load_trained(index.base, folders, settings).items():
            server.serve(served_name(adapter, folder, settings), mllm, folder)
        yield server


@pytest.fixture
def server(running: LanguageServer) -> Iterator[LanguageServer]:
    running.asked.clear()
    yield running
    running.fails_with, running.waits_s = None, 0.0


def settings_of(server: LanguageServer, **changes: object) -> OnlineSettings:
    return OnlineSettings(models=ModelSettings(mllm_url=server.url).model_copy(update=changes), mllm_timeout_s=20.0)


def engine_of(store: ArtifactStore, server: LanguageServer, **changes: object) -> IntentEngine:
    return IntentEngine.from_store(store, "tiny", settings=settings_of(server, **changes))


def ask(text: str) -> IntentQuery:
    return IntentQuery(Dialogue("q", "test", "test", (Turn("user", text),)), INTENT)


def scene() -> IntentExample:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).save(out, "PNG")
    picture = ImageFacts("p", 64, 64, data=out.getvalue())
    return IntentExample("q", SCENE, None, (Turn("user", "what is this?", ("p",)),), images=(picture,))


# ---------------------------------------------------------------- the same answers


@pytest.mark.parametrize("hint", ["", "It is a receipt."])
@pytest.mark.parametrize("task", [INTENT, SCENE])
def test_the_servers_classifier_says_what_the_one_in_process_says(
    adapter: Artifact, server: LanguageServer, task: str, hint: str
):
    example = scene() if task == SCENE else IntentExample("q", INTENT, None, (Turn("user", "hi"),))
    served = load_mllm_classifiers(adapter, ModelSettings(mllm_url=server.url))[task]
    (said,) = served.predict_hinted([example], [hint])
    (expected,) = load_mllm_classifiers(adapter)[task].predict_hinted([example], [hint])
    assert said.labels == expected.labels
    assert said.values == pytest.approx(expected.values, abs=1e-4)


def test_the_engine_answers_by_the_server(store: ArtifactStore, server: LanguageServer):
    (answer,) = engine_of(store, server).answer([ask("hello there")])
    (expected,) = IntentEngine.from_store(store, "tiny").answer([ask("hello there")])
    assert (answer.mllm_shares, answer.degraded) == ({INTENT: 0.4}, ())
    assert answer.predictions[0].label == expected.predictions[0].label
    assert answer.predictions[0].confidence == pytest.approx(expected.predictions[0].confidence, abs=1e-4)
    assert server.asked


# ---------------------------------------------------------------- a server that fails


def test_without_the_server_rules_and_probe_answer_and_with_it_again_the_model(
    store: ArtifactStore, server: LanguageServer
):
    server.fails_with = 503  # from the start: vLLM takes minutes to load a model
    engine = engine_of(store, server)
    (answer,) = engine.answer([ask("hello there")])
    assert answer.predictions[0].label
    (problem,) = answer.degraded
    assert problem.startswith("mllm: failed (the server of models.mllm_url")
    assert server.url not in problem
    server.fails_with = None
    assert engine.answer([ask("hello there")])[0].degraded == ()


def test_a_late_server_does_not_hold_up_the_turn(store: ArtifactStore, server: LanguageServer):
    engine = engine_of(store, server, mllm_request_s=0.3)
    server.waits_s = 2.0
    (answer,) = engine.answer([ask("hello there")])
    assert "mllm: failed (the server of models.mllm_url did" in answer.degraded[0]  # it was late at loading, and rests


def test_a_server_of_another_adapter_is_refused_by_name(
    store: ArtifactStore, adapter: Artifact, server: LanguageServer
):
    """The name holds the artefact's version: answers of other weights than the gate's cannot pass for them."""
    other = settings_of(server, mllm_name="{folder}-older")
    (answer,) = IntentEngine.from_store(store, "tiny", settings=other).answer([ask("hello there")])
    assert "knows no model 'joint-older'" in answer.degraded[0]
    with pytest.raises(ModelError, match="knows no model"):
        IntentEngine.from_store(store, "tiny", refs={"adapter": adapter.ref}, settings=other)


# ---------------------------------------------------------------- which weights


def test_names_tell_version_folder_and_place(adapter: Artifact):
    """ray.serve.llm loads a LoRA adapter from its loading path + what follows the colon of the name."""
    version = adapter.manifest.version
    assert served_name(adapter, "joint", ModelSettings()) == f"joint-{version}"
    name = served_name(adapter, "joint", ModelSettings(mllm_name="base:{path}"))
    assert name.startswith(f"base:{version}/")
    store = adapter.root[: adapter.root.index(version)]
    assert Path(store + name.removeprefix("base:"), "adapter_config.json").is_file()


def test_unknown_fields_of_names_are_refused(adapter: Artifact):
    with pytest.raises(ModelError, match=r"fields \{folder\}, \{version\} and \{path\}"):
        served_name(adapter, "joint", ModelSettings(mllm_name="{task}"))


def test_a_head_over_states_cannot_be_served(adapter: Artifact, server: LanguageServer):
    frozen = load_mllm_index(adapter).model_copy(update={"method": "frozen"})
    with pytest.raises(ModelError, match="method=lora or full"):
        remote_classifiers(adapter, frozen, ModelSettings(mllm_url=server.url))


def test_whole_models_are_read_by_their_own_tokenizer(
    store_copy: ArtifactStore, make_adapter: Callable[..., Artifact], server: LanguageServer
):
    """The base that it came from need not be here."""
    whole = make_adapter(store_copy, seed=4, method="full", saved_as="no-such-model")
    classifier = load_mllm_classifiers(whole, ModelSettings(mllm_url=server.url))[INTENT]
    folder = local_folder(whole, "joint", ModelSettings())
    (mllm,) = load_trained("unused", {"joint": folder}).values()
    server.serve(f"joint-{whole.manifest.version}", mllm)
    example = IntentExample("q", INTENT, None, (Turn("user", "hi"),))
    expected = load_mllm_classifiers(whole)[INTENT].predict([example])[0]
    assert classifier.predict([example])[0].values == pytest.approx(expected.values, abs=1e-4)


def test_an_adapter_folder_is_what_vllm_loads(adapter: Artifact):
    """PEFT's own files, with rank, scale and plain target modules; nothing that vLLM's PEFTHelper refuses."""
    config = adapter.read_json("joint/adapter_config.json")
    assert config["peft_type"] == "LORA"
    assert config["base_model_name_or_path"] == load_mllm_index(adapter).base
    assert config["bias"] == "none"
    assert isinstance(config["target_modules"], list)
    assert not any(config.get(key) for key in ("modules_to_save", "use_dora", "use_rslora", "layer_replication"))
    assert adapter.has("joint/adapter_model.safetensors")
