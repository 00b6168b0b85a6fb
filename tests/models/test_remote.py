"""Labels scored by a server are scored as in this process, and what a server can do wrong is told."""

from __future__ import annotations

import base64
import io
import socket
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mmd.config import build_config
from mmd.errors import ConfigError, ModelError, ServerUnavailableError
from mmd.intent.settings import LoraSettings
from mmd.models.likelihood import LabelScorer
from mmd.models.lora import add_lora
from mmd.models.mllm import Mllm, load_encoder, load_mllm
from mmd.models.prompt import Prompt
from mmd.models.remote import RemoteMllm
from mmd.models.remote_questions import chat_messages
from mmd.models.remote_server import RemoteServer
from mmd.models.settings import ModelSettings
from tests.models.language_server import LanguageServer, language_server

LABELS = ("refund", "refund status", "broken on arrival", "size", "ask_price")
WORDS = (Prompt("Label it.", ("User: where is my money?",)), Prompt("", ("这个会生锈吗？<|im_end|>",)))


def picture(colour: str, size: tuple[int, int] = (40, 56), mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    image = Image.new(mode, size)
    ImageDraw.Draw(image).rectangle((8, 8, 24, 30), fill=colour)
    image.save(out, "PNG")
    return out.getvalue()


PICTURES = (
    Prompt("Label it.", ("User: ", picture("red"), "broken!")),
    Prompt("", (picture("blue", (120, 60), "RGBA"), "User: and ", picture("green"), " this one?")),
)


@pytest.fixture(scope="module")
def running() -> Iterator[LanguageServer]:
    with language_server() as server:
        yield server


@pytest.fixture
def server(running: LanguageServer) -> Iterator[LanguageServer]:
    running.asked.clear()
    yield running
    running.key = running.fails_with = None
    running.waits_s, running.spoils, running.forgets = 0.0, "", False


@pytest.fixture(scope="module")
def models() -> dict[str, Mllm]:
    return {name: load_mllm(name) for name in ("tiny-llama", "tiny-qwen2-vl", "tiny-smolvlm")}


def remote(server: LanguageServer, mllm: Mllm, name: str = "it", timeout_s: float = 20.0) -> RemoteMllm:
    server.serve(name, mllm)
    return RemoteMllm(name, load_encoder(mllm.name), RemoteServer(server.url, timeout_s=timeout_s, requests=4))


# ---------------------------------------------------------------- the same numbers


@pytest.mark.parametrize(
    ("name", "prompts"),
    [("tiny-llama", WORDS), ("tiny-qwen2-vl", (*WORDS, *PICTURES)), ("tiny-smolvlm", PICTURES)],
)
def test_a_servers_log_likelihoods_are_those_of_this_process(
    server: LanguageServer, models: dict[str, Mllm], name: str, prompts: Sequence[Prompt]
):
    scored = remote(server, models[name]).label_scorer(LABELS).log_likelihoods(prompts)
    expected = LabelScorer(models[name], LABELS).log_likelihoods_plain(prompts)
    np.testing.assert_allclose(scored, expected, atol=1e-4)


def test_words_asked_in_one_piece_are_scored_as_step_by_step(server: LanguageServer, models: dict[str, Mllm]):
    scorer = remote(server, models["tiny-llama"]).label_scorer(LABELS)
    question = scorer._question(WORDS[0])
    whole = [question.whole(label) for label in range(len(LABELS))]
    np.testing.assert_allclose(whole, scorer.log_likelihoods(WORDS[:1])[0], atol=1e-4)


@pytest.mark.parametrize("labels", [("锈", "饕", "size"), ("饕餮",)])
def test_labels_whose_tokens_split_a_character_are_scored_too(
    server: LanguageServer, models: dict[str, Mllm], labels: tuple[str, ...]
):
    """No message holds half a character: such labels are asked in one piece after pictures, as ever after words."""
    mllm = models["tiny-qwen2-vl"]
    assert any("\ufffd" in mllm.encoder.words_of(mllm.encoder.answer_ids(label)[:1]) for label in labels)
    prompts = (WORDS[0], *PICTURES)
    scored = remote(server, mllm).label_scorer(labels).log_likelihoods(prompts)
    np.testing.assert_allclose(scored, LabelScorer(mllm, labels).log_likelihoods_plain(prompts), atol=1e-4)
    assert any("prompt_logprobs" in body for body in server.asked)


def test_adapters_are_models_of_their_own_name(server: LanguageServer):
    mllm = load_mllm("tiny-llama")
    add_lora(mllm, LoraSettings(rank=2), seed=0)
    mllm.model.eval()
    torch.manual_seed(0)
    for key, weight in mllm.model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.3)
    expected = LabelScorer(mllm, LABELS).log_likelihoods_plain(WORDS)
    server.serve("tuned", mllm, "default")
    tuned = RemoteMllm("tuned", load_encoder("tiny-llama"), RemoteServer(server.url))
    scored = tuned.label_scorer(LABELS).log_likelihoods(WORDS)
    np.testing.assert_allclose(scored, expected, atol=1e-4)
    assert {body["model"] for body in server.asked} == {"tuned"}


def test_more_label_tokens_than_a_request_may_ask_are_asked_in_several(server: LanguageServer, models: dict[str, Mllm]):
    """130 labels of one token each, and the end: 131 tokens, of which vLLM takes 128 a request."""
    tokenizer = models["tiny-llama"].tokenizer
    words = [tokenizer.decode([token]) for token in range(600, 900)]
    labels = [word for word in dict.fromkeys(words) if word.isalnum() and len(tokenizer(word)["input_ids"]) == 1][:130]
    assert len(labels) == 130
    scored = remote(server, models["tiny-llama"]).label_scorer(labels).log_likelihoods(WORDS[:1])
    expected = LabelScorer(models["tiny-llama"], labels).log_likelihoods(WORDS[:1])
    np.testing.assert_allclose(scored, expected, atol=1e-4)
    assert max(len(body["logprob_token_ids"]) for body in server.asked) == 128


def test_no_prompts_ask_nothing(server: LanguageServer, models: dict[str, Mllm]):
    assert remote(server, models["tiny-llama"]).label_scorer(LABELS).log_likelihoods([]).shape == (0, len(LABELS))
    assert server.asked == []


# ---------------------------------------------------------------- what is sent


def test_words_go_as_the_tokens_of_training_in_two_requests(server: LanguageServer, models: dict[str, Mllm]):
    """The first leaves the prompt in the server's prefix cache, the second has a row for each beginning of a label."""
    model = remote(server, models["tiny-llama"])
    model.label_scorer(LABELS).log_likelihoods(WORDS[:1])
    ids = model.encoder.encode_one(WORDS[0])["input_ids"][0].tolist()
    first, second = server.asked
    assert first["prompt"] == [ids]
    assert all(prompt[: len(ids)] == ids for prompt in second["prompt"])
    assert len({tuple(prompt) for prompt in second["prompt"]}) == len(second["prompt"]) > len(LABELS) - 2
    assert all(body["max_tokens"] == 1 and "prompt_logprobs" not in body for body in server.asked)


def turned() -> bytes:
    """A picture that viewers turn by a quarter: its EXIF says so."""
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((60, 40)).convert("RGB").save(out, "JPEG", exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("data", [picture("blue", (60, 60), "RGBA"), turned()], ids=["transparent", "turned"])
def test_pictures_go_as_they_were_decoded_for_training(models: dict[str, Mllm], data: bytes):
    """What is transparent is white and nothing is turned, as the encoder has it: no server decides otherwise."""
    encoder = models["tiny-qwen2-vl"].encoder
    (message,) = chat_messages(encoder, Prompt("", (data, "what?")))
    url = message["content"][0]["image_url"]["url"]
    sent = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert sent.mode == "RGB"
    assert not sent.getexif()
    assert sent.tobytes() == encoder.open_picture(data).tobytes()


def test_control_tokens_of_users_stay_broken_up_in_messages(models: dict[str, Mllm]):
    asked = Prompt("", ("<|im_end|> refund", picture("red")))
    (message,) = chat_messages(models["tiny-qwen2-vl"].encoder, asked)
    assert message["content"][0] == {"type": "text", "text": "< |im_end|> refund"}


# ---------------------------------------------------------------- another reading than in training


def test_a_server_that_renders_otherwise_is_refused(server: LanguageServer, models: dict[str, Mllm]):
    scorer = remote(server, models["tiny-qwen2-vl"]).label_scorer(LABELS)
    server.spoils = " "
    with pytest.raises(ModelError, match=r"differ from token .*chat-template-content-format openai"):
        scorer.log_likelihoods(PICTURES[:1])
    server.spoils = ""
    scorer.log_likelihoods(PICTURES[:1])


def test_a_label_that_is_read_as_other_tokens_is_refused(server: LanguageServer, models: dict[str, Mllm]):
    """After the first prompt was compared, each further answer is: here another template comes with the second."""
    scorer = remote(server, models["tiny-qwen2-vl"]).label_scorer(LABELS)
    answer = server.answer
    scorer.log_likelihoods(PICTURES[:1])

    def spoiled(path: str, body: dict[str, object], headers: dict[str, str]) -> object:
        server.spoils = "x" if body.get("continue_final_message") else ""
        return answer(path, body, headers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "answer", spoiled)
        with pytest.raises(ModelError, match="as other tokens than in training"):
            scorer.log_likelihoods(PICTURES[:1])


# ---------------------------------------------------------------- a server that fails


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (400, ModelError, "too long a prompt"),
        (404, ModelError, "knows no model 'it'"),
        (429, ServerUnavailableError, "overloaded"),
        (503, ServerUnavailableError, "starting"),
        ("html", ServerUnavailableError, "lacks its path"),
    ],
)
def test_what_a_status_means(
    server: LanguageServer, models: dict[str, Mllm], status: int | str, error: type[ModelError], says: str
):
    scorer = remote(server, models["tiny-llama"]).label_scorer(LABELS)
    server.fails_with = status
    with pytest.raises(ModelError, match=says) as caught:
        scorer.log_likelihoods(WORDS[:1])
    assert type(caught.value) is error
    assert server.url not in str(caught.value)


def test_a_late_server_is_given_up(server: LanguageServer, models: dict[str, Mllm]):
    scorer = remote(server, models["tiny-llama"], timeout_s=0.2).label_scorer(LABELS)
    server.waits_s = 1.0
    with pytest.raises(ServerUnavailableError, match="ReadTimeout"):
        scorer.log_likelihoods(WORDS[:1])


def test_no_server_is_told(models: dict[str, Mllm]):
    gone = RemoteMllm("it", models["tiny-llama"].encoder, RemoteServer("http://127.0.0.1:9/v1"))
    with pytest.raises(ServerUnavailableError, match="does not answer"):
        gone.label_scorer(LABELS).log_likelihoods(WORDS[:1])


def test_a_server_without_the_needed_field_is_told(server: LanguageServer, models: dict[str, Mllm]):
    scorer = remote(server, models["tiny-qwen2-vl"]).label_scorer(LABELS)
    server.forgets = True
    with pytest.raises(ModelError, match=r"not that of vLLM 0\.29"):
        scorer.log_likelihoods(PICTURES[:1])


def test_the_key_comes_from_the_environment(
    server: LanguageServer, models: dict[str, Mllm], monkeypatch: pytest.MonkeyPatch
):
    server.key = "a-key-of-the-test"
    settings = ModelSettings(mllm_url=server.url, mllm_key_env="MMD_TEST_KEY")
    with pytest.raises(ModelError, match="MMD_TEST_KEY is not set"):
        RemoteServer.of(settings)
    monkeypatch.setenv("MMD_TEST_KEY", server.key)
    model = replace_server(remote(server, models["tiny-llama"]), RemoteServer.of(settings))
    assert model.label_scorer(LABELS).log_likelihoods(WORDS[:1]).shape == (1, len(LABELS))
    bare = replace_server(model, RemoteServer.of(settings.model_copy(update={"mllm_key_env": None})))
    with pytest.raises(ModelError, match="mllm_key_env"):
        bare.label_scorer(LABELS).log_likelihoods(WORDS[:1])


@pytest.mark.parametrize("url", ["host:8000/v1", "http://user:secret@host/v1", "file:///v1"])
def test_addresses_are_of_http_and_hold_no_key(url: str):
    with pytest.raises(ConfigError, match=r"models\.mllm_url"):
        build_config({"models": {"mllm_url": url}})


def replace_server(model: RemoteMllm, server: RemoteServer) -> RemoteMllm:
    return RemoteMllm(model.name, model.encoder, server)


def test_a_server_that_is_silent_costs_its_time_limit_once_and_rests_twice_as_long_each_time(
    monkeypatch: pytest.MonkeyPatch,
):
    """It accepts connections and never answers: the next question is refused at once."""
    now = [100.0]
    monkeypatch.setattr("mmd.models.remote_server.time", SimpleNamespace(monotonic=lambda: now[0]))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = RemoteServer(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", timeout_s=0.2)
        for rest_s in (1.0, 2.0, 4.0):
            with pytest.raises(ServerUnavailableError, match="does not answer"):
                server.after_tokens("model", [[1]], [2])
            now[0] += rest_s - 0.1
            with pytest.raises(ServerUnavailableError, match="asked again in 0 s"):
                server.after_tokens("model", [[1]], [2])
            now[0] += 0.2
