"""Which features an audit compares: those of a network that has not learned the labels which it is to judge."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from proxygml.auditing.feature_rows import FeatureRows
from proxygml.data.catalog import Catalog
from proxygml.errors import CatalogError, UserError
from proxygml.models.embedder import Embedder
from proxygml.training.features import cached_features
from proxygml.training.initialization import new_embedder
from proxygml.training.processes import make_accelerator
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.vectors import check_size
from proxygml.urls import absolute


class AuditedFeatures(NamedTuple):
    """The features of the images, and what the user should know of them; empty for nothing."""

    rows: FeatureRows
    warning: str = ""


def audited_features(run: Path | None, catalog: Catalog, workers: int) -> AuditedFeatures:
    """The vectors of a catalog, or the pooled features of its images.

    A backbone that was trained on a wrong label has learned it. So where a run trained its backbone on images of the
    catalog, the features are those of the backbone as it was before training.

    Args:
        run: the run folder; None for a catalog of vectors, which are used as they are.
        catalog: the images or vectors.
        workers: processes that decode images.

    Raises:
        UserError: no run is given for images; or it is unfinished or missing, or the vectors are of another size.
    """
    if run is None:
        if catalog.vectors is None:
            raise UserError("the catalog has images, whose features need a network: give the folder of a run")
        return _vectors(catalog)
    recipe = RunFolder(run).read_recipe()
    embedder = Embedder.load(run)
    if recipe.takes_vectors:
        check_size(catalog, embedder.num_features)
        return _vectors(catalog)
    warning = ""
    if recipe.backbone_lr > 0 and recipe.epochs > recipe.warmup_epochs and _trained_on(recipe, catalog):
        if recipe.embedder.weights == "none":
            warning = (
                "the run trained its network from random weights on images of this catalog, so it may have learned "
                "wrong labels: those are found less well"
            )
        else:
            embedder = new_embedder(recipe, embedder.classes, None)
    accelerator = make_accelerator(replace(recipe, precision="fp32"))
    features = cached_features(embedder.to(accelerator.device), catalog, accelerator, workers=workers).numpy()
    return AuditedFeatures(FeatureRows(features, np.arange(len(features))), warning)


def _vectors(catalog: Catalog) -> AuditedFeatures:
    return AuditedFeatures(FeatureRows(catalog.vector_source.mapped(), catalog.vector_rows))


def _trained_on(recipe: Recipe, catalog: Catalog) -> bool:
    """Whether a run trained on an image of the catalog; also where its own catalog cannot be read any more."""
    try:
        trained = Catalog.read(recipe.catalog).split("train")
    except CatalogError:
        return True
    return not set(map(absolute, trained.paths)).isdisjoint(map(absolute, catalog.paths))
