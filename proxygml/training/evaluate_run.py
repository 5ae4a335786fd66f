"""Evaluation of a run: embed and rank its test split over all processes, and write figures, protocol and report.

evaluation/ computes the figures and reports/ draws the page; this file puts them into the run folder.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed import ProcessGroup

from proxygml.arguments import check_arguments
from proxygml.console import warn
from proxygml.data.catalog.catalog import Catalog, check_splits
from proxygml.errors import CatalogError, counted
from proxygml.evaluation.gains import Gain, gains
from proxygml.evaluation.metrics import Estimate, Evaluation, evaluate
from proxygml.evaluation.rules import part_of
from proxygml.files import PathLike, atomic_write
from proxygml.models.embedder import Embedder
from proxygml.training.features import embed_catalog
from proxygml.training.given_vectors import print_verdict
from proxygml.training.history import read_history, read_kept_counts, trained_epochs
from proxygml.training.initialization import initial_embedder
from proxygml.training.processes import make_accelerator, own_slice, process_group
from proxygml.training.recipe import Recipe
from proxygml.training.remote_run import evaluated_run
from proxygml.training.run_folder import EvaluationFolder, RunFolder
from proxygml.training.vectors import check_size, unit_blocks
from proxygml.urls import Place, as_place, check_places

Protocol = dict[str, str | int]


@check_arguments
def evaluate_run(
    run: PathLike | RunFolder,
    catalog: PathLike | None = None,
    *,
    before: bool = False,
    report: bool = True,
    all_splits: bool = False,
) -> Evaluation | None:
    """Evaluate a run on the test split of its catalog, or of another; write evaluation.json and report.html.

    All processes that were launched together embed and rank; the main one writes, once. The figures are those of one
    process. The files go into the run folder; those of another catalog into a place of their own
    (RunFolder.evaluation_on).

    Args:
        run: the folder of a run whose training has finished. At a URL, what is written appears there.
        catalog: the table whose test split is used, or its URL; by default the catalog that the run was trained on.
        before: also evaluate the network as it was before training, for comparison; of a model of vectors, those
            vectors as they came.
        report: whether to write report.html; its pictures take longer than the figures.
        all_splits: also embed items of the other splits, at most as many as the test split has, for the report's map.

    Returns:
        The figures; None on all but the main process.

    Raises:
        UserError: the run is unfinished, or the catalog is missing or of no use.
    """
    check_places(catalog=catalog)
    if not isinstance(run, RunFolder):
        with evaluated_run(as_place(run, "run"), catalog) as folder:
            return evaluate_run(folder, catalog, before=before, report=report, all_splits=all_splits)
    recipe = run.read_recipe()
    accelerator = make_accelerator(replace(recipe, precision="fp32"))
    table = as_place(catalog or recipe.catalog, "catalog", CatalogError)
    whole = Catalog.read(table)
    test = whole.split("test")
    warnings = check_splits(whole)  # raises before anything is embedded
    embedder = Embedder.load(run.path, accelerator.device)
    if recipe.takes_vectors:
        check_size(test, embedder.num_features)
    embeddings = _embed(embedder, test, recipe, accelerator)
    untrained = _before(recipe, embedder, test, accelerator) if before else None
    seen = sorted(set(test.classes) & set(embedder.classes))
    for warning in [*warnings, *_doubts(test, seen)] if accelerator.is_main_process else ():
        warn(warning)
    evaluation = _evaluate(embeddings, test, recipe, accelerator)
    earlier = None if untrained is None else _evaluate(untrained, test, recipe, accelerator)
    shorter = {
        size: _evaluate(embeddings[:, :size], test, recipe, accelerator, nmi=False) for size in recipe.embedder.prefixes
    }
    protocol = _describe(run, recipe, table, test, len(seen), embedder.num_features, accelerator.num_processes)
    protocol["catalog_fingerprint"] = whole.fingerprint
    if rules := evaluation.rule_sentences():
        protocol["rules"] = "; ".join(rules)
    place = run.evaluation_on(table)
    if earlier is None:
        earlier, gain = _kept_before(place, whole.fingerprint, evaluation)
    else:
        gain = gains(evaluation, earlier, test.labels, seed=recipe.seed)
    figures = _Figures(evaluation, earlier, gain, shorter, protocol)
    if accelerator.is_main_process:
        _write(place, figures)
        if before and recipe.takes_vectors and gain:
            print_verdict(gain, embedder)
    if report:  # all processes look for what it shows
        beside = _others(whole, len(test), recipe.seed) if all_splits else None
        others = None if beside is None else (_embed(embedder, beside, recipe, accelerator), beside)
        _report(run, place, recipe, test, embeddings, figures, others, process_group(accelerator))
    return evaluation if accelerator.is_main_process else None


def _others(whole: Catalog, most: int, seed: int) -> Catalog | None:
    """Items of the training and validation splits, drawn at random where there are more than so many."""
    rows = whole.table[whole.table["split"] != "test"]
    if rows.empty:
        return None
    return whole.with_table(rows if len(rows) <= most else rows.sample(most, random_state=seed).sort_index())


def _doubts(test: Catalog, seen: list[str]) -> list[str]:
    """Why the figures may say little; `seen` are the test classes that training had too."""
    doubts = []
    if seen:
        doubts.append(
            f"training had {counted(len(seen), 'test class')} too, such as {seen[0]!r}: this tests no unseen classes"
        )
    if len(test.classes) == 1:
        doubts.append("the test split has one class only, so that every answer is right: the figures say nothing")
    return doubts


def _embed(embedder: Embedder, test: Catalog, recipe: Recipe, accelerator: Accelerator) -> Tensor:
    """The embeddings of this process's part of the test split."""
    return embed_catalog(embedder, test, accelerator, workers=recipe.workers, cached=recipe.cache_features)


def _before(recipe: Recipe, embedder: Embedder, test: Catalog, accelerator: Accelerator) -> Tensor:
    """The same before training: those of the network as it starts; of vectors, the vectors as they came."""
    if recipe.takes_vectors:
        part = own_slice(len(test), accelerator)
        return torch.cat([torch.empty(0, embedder.num_features), *unit_blocks(test, part)])
    return _embed(initial_embedder(recipe, embedder.classes, accelerator), test, recipe, accelerator)


def _evaluate(
    embeddings: Tensor, test: Catalog, recipe: Recipe, accelerator: Accelerator, *, nmi: bool = True
) -> Evaluation:
    """The figures, on every process; each gives the embeddings of its part of the images."""
    part = own_slice(len(test), accelerator)
    return evaluate(
        embeddings,
        test.labels[part],
        recipe.recall_at,
        nmi,
        mean_average_precision="camera" in test.table,  # the figure that re-identification reports
        seed=recipe.seed,
        progress=True,
        process_group=process_group(accelerator),
        **part_of(test.rules, part),
    )


def _describe(
    run: RunFolder, recipe: Recipe, table: Place, test: Catalog, num_seen: int, num_features: int, num_processes: int
) -> Protocol:
    """What a reader must know to believe the figures."""
    history = read_history(run.metrics)
    trained = len(trained_epochs(history))
    if trained and "val_map_at_r" in history:
        best = int(history["val_map_at_r"].idxmax())
        selection = "the epoch with the best MAP@R on validation classes, which were held out of training whole"
        epoch = int(history["epoch"].iloc[best])
    else:
        selection, epoch = "the last epoch", trained
    item = "vector" if recipe.takes_vectors else "image"
    return {
        "selection": selection if trained else "no training",
        "epoch": epoch,
        "queries": (
            "the test split's queries search its gallery"
            if test.is_query is not None
            else f"every test {item} searches all other test {item}s"
        ),
        "test_classes_seen_in_training": num_seen,
        "catalog": str(table),
        "backbone": recipe.embedder.backbone,
        "embedding_size": recipe.embedder.embedding_size,
        **({"vector_size": num_features} if recipe.takes_vectors else {"image_size": recipe.images.at_test.size}),
        "seed": recipe.seed,
        "processes": num_processes,
    }


def _kept_before(
    place: EvaluationFolder, fingerprint: str, evaluation: Evaluation
) -> tuple[Evaluation | None, Gain | None]:
    """What an earlier call has written of the network before training, for the same images, if any.

    By how much the model is better than that only holds for the same figures of the model.
    """
    try:
        content = json.loads(place.figures.read_text(encoding="utf-8"))
        if content["protocol"]["catalog_fingerprint"] != fingerprint:
            return None, None
        before = Evaluation.from_dict(content["before_training"])
        if Evaluation.from_dict(content) != evaluation or "gain" not in content:
            return before, None
        return before, {name: Estimate(**estimate) for name, estimate in content["gain"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, None


@dataclass(frozen=True)
class _Figures:
    """All that evaluation.json holds."""

    evaluation: Evaluation
    before: Evaluation | None
    """Before training."""
    gain: Gain | None
    """Over those."""
    shorter: Mapping[int, Evaluation]
    """By the first numbers of the embeddings, by how many."""
    protocol: Protocol


def _write(place: EvaluationFolder, figures: _Figures) -> None:
    """Write evaluation.json; a report of other figures is deleted first, so that none lies beside them after a kill."""
    content: dict[str, Any] = figures.evaluation.as_dict() | {"protocol": figures.protocol}
    if figures.before is not None:
        content["before_training"] = figures.before.as_dict()
    if figures.gain is not None:
        content["gain"] = {name: estimate.as_dict() for name, estimate in figures.gain.items()}
    if figures.shorter:
        content["prefixes"] = {str(size): found.as_dict() for size, found in figures.shorter.items()}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    if not place.figures.is_file() or place.figures.read_bytes() != text.encode():
        place.report.unlink(missing_ok=True)
    with atomic_write(place.figures) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _report(
    run: RunFolder,
    place: EvaluationFolder,
    recipe: Recipe,
    test: Catalog,
    embeddings: Tensor,
    figures: _Figures,
    others: tuple[Tensor, Catalog] | None,
    group: ProcessGroup | None,
) -> None:
    from proxygml.reports.run_report import write_report  # noqa: PLC0415  (Matplotlib is slow to load; training need not wait)

    write_report(
        place.report,
        title=run.path.resolve().name,
        evaluation=figures.evaluation,
        history=read_history(run.metrics) if run.metrics.exists() else None,
        embeddings=embeddings,
        catalog=test,
        proxy_selections=read_kept_counts(run.proxies, recipe.loss.proxies_per_class),
        before=figures.before,
        gain=figures.gain,
        shorter=figures.shorter,
        facts=[(name.replace("_", " "), str(value)) for name, value in figures.protocol.items()],
        others=others,
        process_group=group,
    )
