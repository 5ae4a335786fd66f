"""Small models that nobody has trained."""

from pathlib import Path

import torch

from proxygml.data.images.settings import ImageSettings
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder


def untrained(folder: Path, seed: int = 0) -> Path:
    """A run folder with a small model that nobody has trained."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    ImageEmbedder(EmbedderSettings("conv4", "none", "avg", 16), ImageSettings(size=16, resize=16)).save(folder)
    return folder
