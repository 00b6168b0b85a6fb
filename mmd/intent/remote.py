"""The ``mllm`` classifier over a model that a vLLM server runs (:mod:`mmd.models.remote`), from the same artefact.

Which weights the server has to hold follows from the artefact: of a ``lora`` one its base and the adapter folders, of
a ``full`` one the folder of each task. They go by :attr:`~mmd.models.settings.ModelSettings.mllm_name`, with the
artefact's version in it, so that a server of other weights than the gate was made with refuses instead of answering.
"""

from __future__ import annotations

from mmd.artifacts import Artifact
from mmd.errors import ModelError
from mmd.intent.mllm import MllmClassifier, MllmIndex, local_folder
from mmd.models.mllm import load_encoder
from mmd.models.remote import RemoteMllm
from mmd.models.remote_server import RemoteServer
from mmd.models.settings import ModelSettings


def remote_classifiers(artifact: Artifact, index: MllmIndex, settings: ModelSettings) -> dict[str, MllmClassifier]:
    """Return task → classifier that asks the server of ``models.mllm_url``; the server is not asked yet.

    Args:
        artifact: of kind ``adapter``.
        index: what its ``mllm.json`` says.
        settings: the server, and where tokenizer and processor of the base come from.

    Raises:
        ModelError: the artefact holds heads over a model's states, which no such server can be asked for; tokenizer or
            processor are not here; or the setting of the server's key or names is wrong.
    """
    if index.method == "frozen":
        raise ModelError(
            f"{artifact.ref}: holds heads over the hidden states of {index.base!r}, which a server of models.mllm_url "
            "does not give; set that to null, or fine-tune with intent.finetune.method=lora or full."
        )
    server = RemoteServer.of(settings)
    models: dict[str, RemoteMllm] = {}
    for folder in dict.fromkeys(entry.folder for entry in index.tasks.values()):
        place = index.base if index.method == "lora" else str(local_folder(artifact, folder, settings))
        models[folder] = RemoteMllm(served_name(artifact, folder, settings), load_encoder(place, settings), server)
    return {
        task: MllmClassifier(
            task,
            entry.labels,
            models[entry.folder],
            entry.temperature,
            index.prompt,
            hinted_temperature=entry.hinted_temperature,
        )
        for task, entry in index.tasks.items()
    }


def served_name(artifact: Artifact, folder: str, settings: ModelSettings) -> str:
    """Return the name that the server knows the weights in a folder of an artefact by.

    Raises:
        ModelError: ``models.mllm_name`` has other fields than ``{folder}``, ``{version}`` and ``{path}``.
    """
    path = "/".join([*artifact.root.rstrip("/").split("/")[-2:], folder])
    try:
        return settings.mllm_name.format(folder=folder, version=artifact.manifest.version, path=path)
    except (LookupError, ValueError) as err:
        raise ModelError(
            f"models.mllm_name {settings.mllm_name!r}: may hold the fields {{folder}}, {{version}} and {{path}} only."
        ) from err
