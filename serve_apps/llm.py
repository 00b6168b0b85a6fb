"""The large model of intent behind vLLM: a typed builder of a ``ray.serve.llm`` application.

It speaks OpenAI's API at its route prefix; the application of :mod:`serve_apps.app` asks it at ``models.mllm_url``
(``serve_config_gpu.yaml`` has both). ``ray.serve.llm`` needs vLLM, which needs CUDA: it is imported when an application
is built, not before. Anybody who reaches the application may use it, see ``docs/security.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mmd.errors import ModelError

if TYPE_CHECKING:
    from ray import serve

_REMOTE = ("s3://", "gs://", "abfss://", "azure://")
_OWN_ARGUMENTS = ("trust_remote_code", "model", "served_model_name")


class LlmArgs(BaseModel):
    """Arguments of :func:`build`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    model_source: str = Field(
        min_length=1,
        description="Weights: hub id, or a folder that every GPU node has; the base of a LoRA artefact, or a task's "
        "folder of an artefact that was fully fine-tuned.",
    )
    model_id: str = Field(
        default="mmd-mllm",
        pattern=r"^[^:\s]+$",
        description="Name that clients ask; with `adapters`, models.mllm_name is MODEL_ID:{path}.",
    )
    adapters: str | None = Field(
        default=None,
        description="Folder adapter/NAME of a store in a bucket, e.g. s3://bucket/mmd/adapter/shop: what is asked as "
        "MODEL_ID:{path} is loaded from there; null: no LoRA.",
    )
    max_adapters: int = Field(default=4, ge=1, description="LoRA adapters that a replica holds.")
    max_rank: Literal[8, 16, 32, 64, 128, 256] = Field(
        default=16, description="Highest rank of an adapter, of those that vLLM knows; intent.finetune.lora.rank."
    )
    accelerator: str | None = Field(
        default=None, description="Type of GPU, as Ray names it (L4, A10G, H100…); null: any."
    )
    gpus: int = Field(default=1, ge=1, description="GPUs of one replica, over which its layers are split.")
    gpu_memory_share: float = Field(default=0.9, gt=0, le=1, description="Of a GPU's memory, for weights and cache.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(default="auto", description="Arithmetic.")
    max_tokens: int = Field(default=8192, ge=16, description="Longest prompt, in tokens; pictures have hundreds each.")
    max_pictures: int = Field(default=8, ge=0, description="Pictures of one prompt; intent's prompt.max_images.")
    min_replicas: int = Field(default=1, ge=0, description="Fewest replicas.")
    max_replicas: int = Field(
        default=1,
        ge=1,
        description="Most replicas. A prompt's labels share a prefix cache only within one; prefer larger replicas.",
    )
    target_ongoing_requests: int = Field(
        default=64, ge=1, description="Requests under way in one replica; above, replicas are added."
    )
    max_ongoing_requests: int = Field(default=256, ge=1, description="The same; above, requests wait.")
    engine: dict[str, Any] = Field(default_factory=dict, description="Further arguments of vLLM, by its names.")

    @field_validator("adapters")
    @classmethod
    def _in_a_bucket(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(_REMOTE):
            raise ValueError(
                f"{value!r} is not in a bucket ({', '.join(_REMOTE)}), and ray.serve.llm loads adapters from no other "
                "place; run `vllm serve --lora-modules` for a local store, or fine-tune with method=full."
            )
        return value

    @field_validator("engine")
    @classmethod
    def _no_own_code(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(set(value) & set(_OWN_ARGUMENTS)):
            raise ValueError(
                f"{taken[0]} cannot be set here: code that comes with weights is never run, and which weights is "
                "told by model_source and model_id."
            )
        return value


def build(args: LlmArgs | Mapping[str, Any]) -> serve.Application:
    """Return the application: an OpenAI-compatible ingress and vLLM replicas.

    Args:
        args: a deployment file's ``args`` come as the mapping that YAML makes of them.

    Raises:
        ModelError: vLLM is not installed.
    """
    args = LlmArgs.model_validate(args)
    try:
        from ray.serve.llm import build_openai_app
    except ImportError as err:
        raise ModelError(
            f"serve_apps.llm: vLLM is not installed here ({str(err)[:200]}); install mmd[vllm] into an environment of "
            "its own on a machine with CUDA. Without, the large model runs in the intent replicas: set "
            "models.mllm_url to null."
        ) from err
    return build_openai_app({"llm_configs": [llm_config(args)]})


def llm_config(args: LlmArgs) -> dict[str, Any]:
    """Return what ``ray.serve.llm.LLMConfig`` takes."""
    config: dict[str, Any] = {
        "model_loading_config": {"model_id": args.model_id, "model_source": args.model_source},
        "engine_kwargs": {**_engine(args), **args.engine},
        "deployment_config": {
            "autoscaling_config": {
                "min_replicas": args.min_replicas,
                "max_replicas": max(args.min_replicas, args.max_replicas),
                "target_ongoing_requests": args.target_ongoing_requests,
            },
            "max_ongoing_requests": args.max_ongoing_requests,
        },
    }
    if args.accelerator is not None:
        config["accelerator_type"] = args.accelerator
    if args.adapters is not None:
        config["lora_config"] = {
            "dynamic_lora_loading_path": args.adapters,
            "max_num_adapters_per_replica": args.max_adapters,
        }
    return config


def _engine(args: LlmArgs) -> dict[str, Any]:
    """Return the engine's arguments: what labels are scored by, and sizes."""
    engine: dict[str, Any] = {
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",  # of the model's own softmax, whatever a request's sampling does to it
        "chat_template_content_format": "openai",  # keeps words and pictures in their order
        "generation_config": "vllm",  # no sampling defaults that come with weights
        "tensor_parallel_size": args.gpus,
        "gpu_memory_utilization": args.gpu_memory_share,
        "dtype": args.dtype,
        "max_model_len": args.max_tokens,
    }
    if args.max_pictures:
        engine["limit_mm_per_prompt"] = {"image": args.max_pictures}
    if args.adapters is not None:
        engine |= {"enable_lora": True, "max_loras": args.max_adapters, "max_lora_rank": args.max_rank}
    return engine
