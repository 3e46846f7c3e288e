"""Which model a manifest's weights are of: from checkpoints, exports of local trainings, manifests of trainings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_api.common import WorkerTemplate
from arctic_api.inference import InferenceModel
from arctic_api.training import ArcticTrainingSpec, WeightsFrom
from arctic_api.verdict import field_problems, settle
from arctic_cli.local import DEFAULT_NAMESPACE, local_mounts, weights_folder
from arctic_cli.manifest import Document, ManifestError, describe, load
from arctic_model.config import ArcticConfig
from arctic_model.quantization import unrounded_config
from arctic_model.upcycle import grown_config


@dataclass(frozen=True)
class Manifest:
    """One manifest of a file, whose fields are right; rules may still refuse it."""

    file: Path
    content: dict[str, Any]

    @property
    def kind(self) -> str:
        """What it is a manifest of."""
        return str(self.content["kind"])

    @property
    def name(self) -> str:
        """Its object's name."""
        return str(self.content["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Its object's namespace."""
        return str(self.content["metadata"].get("namespace") or DEFAULT_NAMESPACE)


def read_manifests(files: Sequence[Path], kind: str) -> list[Manifest]:
    """Return the manifests of a kind in some files; ManifestError where a field of one is wrong."""
    found = [(file, document) for file in files for document in load(file) if document.content.get("kind") == kind]
    return [_checked(file, document) for file, document in found]


def _checked(file: Path, document: Document) -> Manifest:
    if problems := field_problems(document.content):
        raise ManifestError("\n".join(describe(file, document, problem) for problem in problems))
    return Manifest(file, settle(document.content))


class Models:
    """Finds configurations; `trainings` are manifests that are at hand, `volumes` the folder of local claims."""

    def __init__(self, trainings: Sequence[Manifest], volumes: Path) -> None:
        self._trainings = {(training.namespace, training.name): training for training in trainings}
        self._volumes = volumes

    def find(
        self, source: InferenceModel | WeightsFrom, namespace: str, template: WorkerTemplate | None
    ) -> tuple[ArcticConfig, str]:
        """Return the configuration of the weights that a manifest names, and where it was found.

        A manifest that is at hand is believed before an export is looked for. Raises ValueError or ClickException.
        """
        # Taken out, so that trainings which start from each other come to an end.
        if source.training and (training := self._trainings.pop((namespace, source.training), None)):
            return self.of_training(training)
        folder = weights_folder(source, namespace, self._volumes)
        if not folder.startswith("/"):
            raise ValueError(f"{folder or 'it'} names no folder of this machine")
        places = (mount.resolve(folder) for mount in local_mounts(template, self._volumes))
        folder = next((place for place in places if place), folder)
        if isinstance(source, InferenceModel):
            return ArcticConfig.from_folder(Path(folder), quantized=True), folder
        return (_in_a_file if Path(folder).is_file() else unrounded_config)(Path(folder)), folder

    def of_training(self, training: Manifest) -> tuple[ArcticConfig, str]:
        """Return the configuration of the model that a training trains, and where it was found; errors as `find`."""
        spec = ArcticTrainingSpec.model_validate(training.content["spec"])
        config, where = self._before_it_is_stretched(spec, training)
        scaling = spec.model.rope_scaling
        return (config.stretched(scaling.type, scaling.factor) if scaling else config), where

    def _before_it_is_stretched(self, spec: ArcticTrainingSpec, training: Manifest) -> tuple[ArcticConfig, str]:
        model, where = spec.model, f"{training.file}: spec.model"
        if model.preset is not None:
            config = ArcticConfig.preset(model.preset)
            trained = spec.tokenizer.train if spec.tokenizer else None
            # A preset takes the vocabulary of its tokenizer.
            return config.with_vocab_size(trained.vocab_size) if trained else config, f"preset {model.preset}"
        if model.config is not None:
            return ArcticConfig.from_dict(model.config, f"{where}.config"), f"{where}.config"
        if model.from_ is None:
            raise ValueError(f"{where}: write exactly one of preset, config and from")
        config, where = self.find(model.from_, training.namespace, spec.template)
        if grown := model.upcycle:
            config = grown_config(config, experts=grown.experts, every=grown.every, chosen=grown.top_k)
        return config, where


def _in_a_file(path: Path) -> ArcticConfig:
    try:  # who installs the command alone has neither torch nor gguf
        from arctic_model.llama import open_llama

        return open_llama(path).config
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed, with which a GGUF file is read: install arctic-kubernetes[convert]"
        ) from error
