"""The application of the large model, as far as it can be looked at without vLLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from mmd.errors import ModelError
from mmd.models.settings import ModelSettings
from serve_apps.app import AppArgs
from serve_apps.llm import LlmArgs, build, llm_config

CONFIG = Path(__file__).resolve().parents[2] / "serve_apps" / "serve_config_gpu.yaml"
WITH_ADAPTERS = {"model_source": "org/model", "adapters": "s3://bucket/mmd/adapter/shop", "accelerator": "L4"}


@pytest.fixture(scope="module")
def applications() -> dict[str, dict[str, Any]]:
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return {app["name"]: app for app in config["applications"]}


def test_rays_own_schema_takes_the_deployment_file():
    from ray.serve.schema import ServeDeploySchema

    deployed = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))
    assert [app.route_prefix for app in deployed.applications] == ["/", "/llm"]


def test_the_builders_take_its_arguments_and_meet_at_one_address(applications: dict[str, dict[str, Any]]):
    models = AppArgs.model_validate(applications["mmd"]["args"]).models
    args = LlmArgs.model_validate(applications["llm"]["args"])
    assert models.mllm_url == f"http://127.0.0.1:8000{applications['llm']['route_prefix']}/v1"
    assert models.mllm_name == f"{args.model_id}:{{path}}"
    assert args.adapters == f"{applications['mmd']['args']['store']}/adapter/{applications['mmd']['args']['corpus']}"


@pytest.mark.parametrize("args", [WITH_ADAPTERS, {"model_source": "/weights/full", "engine": {"max_num_seqs": 64}}])
def test_rays_llm_config_takes_what_is_built(args: dict[str, Any]):
    """The class that ray.serve.llm.LLMConfig derives from; it imports without vLLM."""
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig

    config = LLMConfig.model_validate(llm_config(LlmArgs.model_validate(args)))
    assert config.model_id == "mmd-mllm"
    assert config.engine_kwargs["enable_prefix_caching"] is True
    assert config.deployment_config["autoscaling_config"]["max_replicas"] == 1
    assert (config.lora_config is not None) == ("adapters" in args) == ("enable_lora" in config.engine_kwargs)
    assert config.engine_kwargs.get("max_num_seqs") == args.get("engine", {}).get("max_num_seqs")


def test_the_name_of_an_adapter_is_what_ray_cuts_its_place_from():
    """Ray loads BASE:REST from the loading path + REST."""
    from ray.llm._internal.common.utils.lora_utils import get_base_model_id, get_lora_id

    name = ModelSettings(mllm_name="mmd-mllm:{path}").mllm_name.format(path="1a2b3c/w-0/joint", folder="", version="")
    assert (get_base_model_id(name), get_lora_id(name)) == ("mmd-mllm", "1a2b3c/w-0/joint")


def test_adapters_outside_a_bucket_are_refused_with_the_way_out():
    with pytest.raises(ValidationError, match="vllm serve --lora-modules"):
        LlmArgs(model_source="org/model", adapters="artifacts/adapter/shop")


@pytest.mark.parametrize("name", ["trust_remote_code", "served_model_name"])
def test_arguments_that_are_not_the_callers_are_refused(name: str):
    with pytest.raises(ValidationError, match=f"{name} cannot be set here"):
        LlmArgs(model_source="org/model", engine={name: True})


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_building_says_what_to_install():
    with pytest.raises(ModelError, match=r"mmd\[vllm\]"):
        build({"model_source": "org/model"})
