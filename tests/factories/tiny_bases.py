"""A tiny random base as transformers has it and as the server decodes it, unquantized."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_directories import write_tiny_model
from tiny_models import base_shape
from transformers import PreTrainedModel

from hotshoe.registry.formats.base import BaseShape, BaseWeights
from hotshoe.server.model.backends import reference_backend
from hotshoe.server.model.base_weights import CheckpointWeights
from hotshoe.server.model.checkpoints import DirectoryCheckpoint
from hotshoe.server.model.decoder import Decoder
from hotshoe.server.model.decoder_reader import read_decoder
from hotshoe.server.model.families import spec_from_config


@dataclass(frozen=True, slots=True)
class TinyBase:
    """One random model, by transformers and by the server's own decoder."""

    model: PreTrainedModel
    directory: Path
    decoder: Decoder
    weights: BaseWeights
    shape: BaseShape


def tiny_base(directory: Path, family: str = "llama", **config: Any) -> TinyBase:
    """A base of a family, in a directory."""
    model = write_tiny_model(directory, family, seed=3, **config)
    checkpoint = DirectoryCheckpoint(directory)
    decoder = read_decoder(checkpoint, spec_from_config(checkpoint.config), reference_backend())
    shape = base_shape(model)
    return TinyBase(model, directory, decoder, CheckpointWeights(checkpoint, shape), shape)
