"""The model card: what is known of a run, in the form that the Hugging Face Hub shows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from proxygml import __version__
from proxygml.errors import RunError, counted
from proxygml.evaluation.metrics import Estimate, Evaluation
from proxygml.models.model_description import ModelDescription, VectorModelDescription, read_model
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder

TEMPLATE = Path(__file__).with_name("model_card.md")

NAMES_SHOWN = 10
"""Of the training classes."""

MEANING = (
    "Recall@K: the share of queries with an item of their class among the K nearest. R-precision: the share of the "
    "query's class among as many neighbours as the class has; MAP@R counts the nearest of them more. NMI: how well "
    "clusters agree with the classes."
)

LIMITS = (
    "For search, clustering and the recognition of classes that training did not see, among images like those that it "
    "was trained on. A similarity says how alike two {items} are to this model, not how likely they are of one class: "
    "choose thresholds on data of your own. The figures above hold for their test classes; other {items}, other "
    "cameras or other kinds of classes may do worse, and the model shares the gaps of its training data. It was not "
    "made to recognise people, or to decide about them."
)


@dataclass(frozen=True)
class EvaluatedRun:
    """What a card is made of."""

    model: ModelDescription | VectorModelDescription
    recipe: Recipe
    evaluation: Evaluation | None
    before: Evaluation | None
    protocol: Mapping[str, Any]


def read_run(path: Path) -> EvaluatedRun:
    """What the files of a run folder say.

    Raises:
        RunError: a file is missing or damaged; a run without evaluation.json has no figures, but is none.
    """
    run = RunFolder(path)
    model, recipe = read_model(path), run.read_recipe()
    if not run.evaluation.is_file():
        return EvaluatedRun(model, recipe, None, None, {})
    try:
        content = json.loads(run.evaluation.read_text(encoding="utf-8"))
        before = content.get("before_training")
        return EvaluatedRun(
            model,
            recipe,
            Evaluation.from_dict(content),
            None if before is None else Evaluation.from_dict(before),
            dict(content["protocol"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{run.evaluation} cannot be read ({error}): write it anew by `proxygml evaluate`") from error


def model_card(run: EvaluatedRun, repo: str, license: str = "") -> str:
    """The card of a run, Markdown with the Hub's metadata in front.

    Args:
        run: what is known.
        repo: USER/NAME on the Hub.
        license: an identifier of the Hub, such as apache-2.0; none is claimed where it is empty.
    """
    vectors = isinstance(run.model, VectorModelDescription)
    template = Environment(undefined=StrictUndefined, autoescape=False).from_string(TEMPLATE.read_text("utf-8"))
    return template.render(
        metadata=_metadata(run, repo, license, vectors),
        name=repo.partition("/")[2],
        repo=repo,
        purpose=_purpose(run.model),
        example=_example(run.model),
        index_input="--vectors vectors.parquet" if vectors else "--images photos",
        data=_data(run, "vector" if vectors else "image"),
        figures=_figures(run),
        settings=[(key, _cell(value)) for key, value in _settings(run)],
        limits=LIMITS.format(items="vectors" if vectors else "images"),
    )


def _metadata(run: EvaluatedRun, repo: str, license: str, vectors: bool) -> str:
    task = "feature-extraction" if vectors else "image-feature-extraction"
    metadata: dict[str, Any] = {
        "library_name": "proxygml",
        "pipeline_tag": task,
        "tags": ["proxygml", "metric-learning", "embeddings", "vectors" if vectors else "image-retrieval"],
    }
    if license:
        metadata["license"] = license
    if run.evaluation is not None:
        metrics = [
            {"type": f"recall_at_{k}", "name": f"Recall@{k}", "value": round(100 * estimate.value, 2)}
            for k, estimate in run.evaluation.recall.items()
        ]
        metrics.append({"type": "map_at_r", "name": "MAP@R", "value": round(100 * run.evaluation.map_at_r.value, 2)})
        data = {"type": "catalog", "name": _data_name(run), "split": "test"}
        result = {"task": {"type": task, "name": "Retrieval of unseen classes"}, "dataset": data, "metrics": metrics}
        metadata["model-index"] = [{"name": repo.partition("/")[2], "results": [result]}]
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip()


def _purpose(model: ModelDescription | VectorModelDescription) -> str:
    size = model.embedder.embedding_size or "as many"
    if isinstance(model, VectorModelDescription):
        return (
            f"A head on vectors of {model.num_features} numbers, such as another model's embeddings, which makes "
            f"{size} numbers of them: unit vectors whose products say how alike two items are, also of classes that "
            "training did not see. Made with [proxygml](https://arxiv.org/abs/2010.13636) (deep metric learning with "
            "few proxies)."
        )
    return (
        f"An image embedder on {model.embedder.backbone}: an image becomes a unit vector of {size} numbers, and the "
        "product of two says how alike the images are, also of classes that training did not see. Made with proxygml "
        "(deep metric learning with few proxies, [arXiv:2010.13636](https://arxiv.org/abs/2010.13636))."
    )


def _example(model: ModelDescription | VectorModelDescription) -> str:
    if isinstance(model, VectorModelDescription):
        return f"embeddings = embedder.embed(vectors)  # float32 (n, {model.num_features}) -> unit vectors"
    return 'embeddings = embedder.embed(["a.jpg", "b.jpg"])  # unit vectors\nsimilarity = embeddings @ embeddings.T'


def _data(run: EvaluatedRun, item: str) -> str:
    classes = run.model.classes
    shown = ", ".join(_cell(name) for name in classes[:NAMES_SHOWN])
    more = "" if len(classes) <= NAMES_SHOWN else f", and {len(classes) - NAMES_SHOWN:,} more"
    trained = f"Trained on {counted(len(classes), 'class')} of {_data_name(run)}: {shown}{more}."
    if run.evaluation is None:
        return trained
    figures = run.evaluation
    return (
        f"{trained}\n\nJudged on {counted(figures.num_classes, 'test class')} "
        f"({counted(figures.num_queries, 'query')} in a gallery of "
        f"{counted(figures.num_gallery, item)}); {run.protocol.get('test_classes_seen_in_training', 0)} of these "
        "classes were seen in training."
    )


def _data_name(run: EvaluatedRun) -> str:
    """The catalog's name. Its folder says where somebody keeps files, and is nobody else's business."""
    return Path(str(run.protocol.get("catalog", run.recipe.catalog))).stem or "a catalog"


def _figures(run: EvaluatedRun) -> str:
    if run.evaluation is None:
        return "This run was not evaluated, so nothing is known of how well it retrieves."
    before = {} if run.before is None else _named(run.before)
    lines = ["| figure | per cent (95% interval) |" + (" before training |" if before else "")]
    lines.append("|---|---|" + ("---|" if before else ""))
    for name, estimate in _named(run.evaluation).items():
        cells = [name, _in_words(estimate), *([_in_words(before[name]) if name in before else ""] if before else [])]
        lines.append(f"| {' | '.join(cells)} |")
    how = [str(run.protocol[key]) for key in ("queries", "selection") if key in run.protocol]
    how_text = f"How: {'; '.join(how)}. Intervals are bootstrapped over the test classes."
    return "\n".join([*lines, "", MEANING, "", how_text])


def _named(evaluation: Evaluation) -> dict[str, Estimate]:
    figures = {f"Recall@{k}": estimate for k, estimate in evaluation.recall.items()}
    figures |= {"MAP@R": evaluation.map_at_r, "R-precision": evaluation.r_precision}
    return figures if evaluation.nmi is None else figures | {"NMI": evaluation.nmi}


def _in_words(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _settings(run: EvaluatedRun) -> list[tuple[str, object]]:
    recipe = run.recipe
    settings: list[tuple[str, object]] = [
        ("backbone", recipe.embedder.backbone),
        ("weights that training started from", _start(recipe)),
        ("numbers of an embedding", recipe.embedder.embedding_size),
        ("loss", recipe.loss.name),
    ]
    if recipe.loss.is_ours:
        keys = ("proxies_per_class", "neighbor_ratio", "proxy_weight", "scale")
        settings += [(f"loss: {key.replace('_', ' ')}", getattr(recipe.loss, key)) for key in keys]
    settings += [("epochs", recipe.epochs), ("batch size", recipe.batch_size), ("seed", recipe.seed)]
    if not recipe.takes_vectors:
        settings.append(("pixels of an image's side in training", recipe.images.size))
        settings.append(("pixels of the side of an image that is embedded", recipe.images.at_test.size))
    return [*settings, ("version of proxygml", __version__)]


def _start(recipe: Recipe) -> str:
    if recipe.start_from:
        return "those of an earlier run of proxygml"
    return "none (random)" if recipe.embedder.weights == "none" else "pretrained"


def _cell(value: object) -> str:
    """A value within a line or a cell of Markdown: names of classes are somebody's text."""
    text = " ".join(str(value).split())
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>|#!~$" else letter for letter in text)
