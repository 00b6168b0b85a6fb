"""Settings of model weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmd.base import Settings


class ModelSettings(Settings):
    """Where weights come from."""

    proposer: str | None = Field(
        default=None,
        description="Language model that proposes rule predicates (a name of mmd.models.resolve); null: mined only.",
    )
    mllm: str | None = Field(
        default=None,
        description="Model that is fine-tuned for intents (a name of mmd.models.resolve; tiny-* are random weights of "
        "a real architecture); null: rules and probe only.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where multimodal models run.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Their arithmetic; auto: bfloat16 where the device computes in it natively, float32 for tiny-*.",
    )
    allow_hub: bool = Field(default=False, description="Allow downloads from a model hub at run time.")
    cache_dir: str = Field(
        default="~/.cache/mmd",
        description="Folder for weights that mmd assembles or converts once, so that later loads take seconds.",
    )
    threads: int = Field(default=1, ge=1, description="CPU threads of one loaded model.")
    mllm_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^@\s]+$",
        description="OpenAI-compatible root of a vLLM server (0.29 or later) that runs the fine-tuned MLLM for the "
        "service, as http://host:8000/v1; null: it runs in the service's own processes.",
    )
    mllm_key_env: str | None = Field(
        default=None, description="Environment variable that holds that server's API key; null: it asks for none."
    )
    mllm_name: str = Field(
        default="{folder}-{version}",
        description="Name that the server knows a task's weights by; {folder} and {version} are those of the adapter "
        "artefact, {path} where the folder is below adapter/NAME of the store. With ray.serve.llm: MODEL_ID:{path}.",
    )
    mllm_request_s: float = Field(default=10.0, gt=0, description="Longest wait for one request to that server, s.")
    mllm_requests: int = Field(default=32, ge=1, description="Requests to that server under way at once, a replica.")
