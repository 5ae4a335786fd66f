"""Training: the method as a loop. Optimiser groups, warm-up, batch-norm policy, honest selection, checkpoints.

It reads a recipe and a catalog and fills a run folder with a model. The test classes are not looked at here.
"""

import csv
import hashlib
import math
import pickle
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed.nn.functional as distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, broadcast, set_seed
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from proxygml.console import console, progress_bar
from proxygml.data.catalog import BOX_COLUMNS, Catalog, check_splits, hold_out_classes
from proxygml.data.images import ImageDataset, collate
from proxygml.errors import CatalogError, DivergedError, RecipeError, RunError
from proxygml.evaluation.metrics import score_queries
from proxygml.files import atomic_write
from proxygml.loss.lazy_adam import LazyAdam
from proxygml.loss.proxygml_loss import ProxyGMLLoss
from proxygml.models.backbones import build_backbone
from proxygml.models.embedder import Embedder
from proxygml.training.criterion import make_criterion
from proxygml.training.features import cached_features, embed_catalog, embed_features
from proxygml.training.initialization import check_directions, start_embedding, start_proxies
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.sampler import Batches

LOG_EVERY = 20  # steps between two looks at the loss and the mean cosine; on a GPU a look waits for the queue
COLLAPSED = 0.9  # mean cosine of a batch above which hardly any direction is left to tell images apart

UNSPREAD_EPOCHS = 5  # after the warm-up, in which a network that starts in a narrow cone may still spread
RISE = 0.1  # the share of all steps in which the rates of one_cycle rise

Row = dict[str, float]
Labels = npt.NDArray[np.int64]


@dataclass
class Progress:
    """How far a run has come: what a checkpoint holds beside the tensors."""

    epoch: int = 0
    history: list[Row] = field(default_factory=list)
    steps: int = 0
    best_epoch: int = 0
    collapse_named: bool = False


class Training:
    """One run in the making: the network, the loss, the optimiser and the data, on every process alike."""

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self.recipe = recipe
        self.run = run
        self.accelerator = make_accelerator(recipe, run.path)
        set_seed(recipe.seed)
        self.train_images, self.validation_images = split_for_training(recipe)
        classes = self.train_images.classes
        self.embedder = self._start_embedder(classes)
        if recipe.embedding_start == "features":  # now, and not when the run has begun
            check_directions(self.embedder.embedding_size, len(self.train_images), self.embedder.num_features)
        if self.accelerator.num_processes > 1:
            self._share_statistics()
        self.criterion = make_criterion(recipe.loss, len(classes), self.embedder.embedding_size)
        self.criterion.to(self.accelerator.device)
        optimizers = make_optimizers(recipe, self.embedder, self.criterion)
        self.optimizers = [self.accelerator.prepare_optimizer(optimizer) for optimizer in optimizers]
        numbers = {label: number for number, label in enumerate(classes)}
        labels = np.array([numbers[label] for label in self.train_images.labels])
        self.labels = torch.from_numpy(mislabelled(labels, len(classes), recipe.label_noise, recipe.seed))
        self.batches = Batches(
            self.labels.numpy(),
            recipe.batch_size,
            recipe.images_per_class,
            recipe.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.validation_features: Tensor | None = None
        self.progress = Progress()
        self.collapse = CollapseWatch()

    def _start_embedder(self, classes: list[str]) -> Embedder:
        """The network with the weights that it starts from, or without any where a checkpoint holds them all."""
        settings, images = self.recipe.embedder, self.recipe.images
        restored = self.run.checkpoint.exists()
        backbone = build_backbone(settings.backbone, "none", images.size) if restored else None
        embedder = Embedder(settings, images, classes, backbone=backbone)
        return embedder.to(self.accelerator.device)

    # The method, from top to bottom -----------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train all epochs that are left, keep the model that the protocol says, and write it."""
        try:
            self._fit()
        except DivergedError:  # after which the process may train on: the next run is not to be tracked as this one
            self._end_tracking()
            raise
        self._end_tracking()

    def _end_tracking(self) -> None:
        for tracker in self.accelerator.trackers:  # and not end_training(), which would part the processes for good
            tracker.finish()

    def _fit(self) -> None:
        data = self._data()
        loader = self._loader(data)
        if self.progress.epoch == 0:
            self._start_from_features()
        for epoch in range(self.progress.epoch + 1, self.recipe.epochs + 1):
            self.batches.set_epoch(epoch)
            data.set_epoch(epoch)
            row = self._train_epoch(epoch, loader)
            if self.validation_images is not None:
                row |= self._validate()
            self._finish_epoch(epoch, row)
        self._write_model()

    def _start_from_features(self) -> None:
        """Embedding layer and proxies, where the recipe takes them from the training images."""
        recipe, images = self.recipe, self.train_images
        if recipe.embedding_start == "features":
            start_embedder(self.embedder, images, self.accelerator, recipe)
        if recipe.proxy_start == "features":
            assert isinstance(self.criterion, ProxyGMLLoss)
            features = start_features(self.embedder, images, self.accelerator, recipe)
            start_proxies(self.criterion, embed_features(self.embedder, features), self.labels)

    def _train_epoch(self, epoch: int, loader: "Loader") -> Row:
        # For dropout and the like; images and batches have their own.
        set_seed(int(np.random.SeedSequence((self.recipe.seed, epoch)).generate_state(1)[0]))
        self._freeze(backbone=epoch <= self.recipe.warmup_epochs or self.recipe.backbone_lr == 0)
        network = self._distributed(self.embedder.head if self.recipe.cache_features else self.embedder)
        criterion = self._shared() if self.recipe.loss.sparse else self._distributed(self.criterion)
        meter = Meter()
        kept = ProxyCounter(self.criterion) if isinstance(self.criterion, ProxyGMLLoss) else None
        for step, (inputs, indices, size) in enumerate(self._steps(epoch, loader, meter), start=1):
            rates = set_learning_rates(self.optimizers, self.recipe, epoch - 1 + (step - 0.5) / len(loader))
            embeddings = network(inputs.to(self.accelerator.device, non_blocking=True))
            labels = self.labels[indices].to(self.accelerator.device, non_blocking=True)
            embeddings, labels = self._gather(embeddings, labels, size)
            self._look(meter, embeddings, epoch, step)
            loss = criterion(embeddings, labels)
            self.accelerator.backward(loss)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            self.progress.steps += 1
            meter.add(loss, embeddings)
            if kept is not None and epoch == self.recipe.epochs:
                kept.add(embeddings, labels)
        # What follows, validation first, sees the network as it will be saved: without mixed precision around it.
        self.accelerator.unwrap_model(network, keep_fp32_wrapper=False)
        self._check_finite_loss(meter.last_loss, epoch, step)
        self._check_finite_inputs(inputs, epoch, step)
        if kept is not None and epoch == self.recipe.epochs and self.accelerator.is_main_process:
            kept.write(self.run.proxies, self.embedder.classes)
        return {"epoch": epoch, **meter.means(), **rates}

    def _freeze(self, backbone: bool) -> None:
        """Choose what learns: in the warm-up the embedding layer and the proxies alone."""
        self.embedder.train()
        self.embedder.backbone.requires_grad_(not backbone)
        self.embedder.backbone.train(not backbone)
        if self.recipe.batch_norm == "frozen":
            for layer in self.embedder.backbone.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
                    layer.requires_grad_(False)

    def _validate(self) -> Row:
        assert self.validation_images is not None
        images = self.validation_images
        scores = score_queries(
            self._embed_validation(images), images.labels, is_query=images.is_query, is_gallery=images.is_gallery
        )
        return {
            "val_recall_at_1": float((scores.first_positive < 1).mean()),
            "val_map_at_r": float(scores.average_precision.mean()),
        }

    def _share_statistics(self) -> None:
        """Let batch norm see the global batch, as one process would; PyTorch has that for GPUs alone."""
        on_gpus = self.accelerator.device.type == "cuda"
        check_batch_division(self.recipe, self.accelerator)
        if self.recipe.embedder.feature_norm == "batch":
            self.embedder.head = convert_sync_batchnorm(self.embedder.head)  # type: ignore[no-untyped-call]
        if self.recipe.batch_norm != "trained":
            return
        if on_gpus:
            # timm's own, because PyTorch's would drop the activations that timm's batch-norm layers hold.
            self.embedder.backbone = convert_sync_batchnorm(self.embedder.backbone)  # type: ignore[no-untyped-call]
        elif self.accelerator.is_main_process:
            console.print(
                "batch_norm is trained: on CPUs each process normalises by its own share of the batch, so the result "
                "differs from that of one process (with batch_norm frozen it does not)",
                style="yellow",
            )

    # Data -------------------------------------------------------------------------------------------------------------

    def _data(self) -> "TrainingData":
        if self.recipe.cache_features:
            features = cached_features(self.embedder, self.train_images, self.accelerator, workers=self.recipe.workers)
            return FeatureDataset(features)
        images = self.train_images
        return ImageDataset(images.paths, images.boxes, self.recipe.images, training=True, seed=self.recipe.seed)

    def _loader(self, data: "TrainingData") -> "Loader":
        """One loader for all epochs, so that its workers outlive them."""
        workers = 0 if self.recipe.cache_features else self.recipe.workers
        return DataLoader(
            data,
            batch_sampler=self.batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=None if self.recipe.cache_features else collate,
            pin_memory=self.accelerator.device.type == "cuda",
            # Of its own: where workers start, a loader draws a number, and dropout must not depend on where that is.
            generator=torch.Generator(),
        )

    def _steps(self, epoch: int, loader: "Loader", meter: "Meter") -> Iterator[tuple[Tensor, Tensor, int]]:
        """This process's inputs, their indices and the size of the global batch, with a progress bar."""
        with progress_bar(disable=not self.accelerator.is_main_process) as bar:
            task = bar.add_task(f"epoch {epoch}/{self.recipe.epochs}", total=len(loader), note="")
            for (inputs, indices), size in zip(loader, self.batches.sizes, strict=True):
                yield inputs, indices, size
                bar.update(task, advance=1, note=meter.note)

    def _embed_validation(self, images: Catalog) -> Tensor:
        workers = self.recipe.workers
        if not self.recipe.cache_features:
            return embed_catalog(self.embedder, images, self.accelerator, workers=workers, cached=False)
        if self.validation_features is None:
            self.validation_features = cached_features(self.embedder, images, self.accelerator, workers=workers)
        return embed_features(self.embedder.eval(), self.validation_features)

    # Several processes ------------------------------------------------------------------------------------------------

    def _distributed(self, module: nn.Module) -> nn.Module:
        """The module as Accelerate wraps it for this epoch's set of learning parameters.

        Wrapped anew each epoch, because data parallelism fixes at that moment which gradients it exchanges. One process
        in full precision has nothing to wrap; it would only wait for the memory to be swept.
        """
        plain = self.accelerator.num_processes == 1 and self.accelerator.mixed_precision == "no"
        if plain or not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        self.accelerator.free_memory()
        module = self.accelerator.unwrap_model(module, keep_fp32_wrapper=False)
        prepared: nn.Module = self.accelerator.prepare_model(module)
        return prepared

    def _shared(self) -> nn.Module:
        """The criterion with sparse gradients, which data parallelism cannot exchange on every device.

        Each process computes those of the whole batch and takes the same step. What rounding on a GPU may have moved
        apart is brought together once an epoch.
        """
        for parameter in self.criterion.parameters():
            broadcast(parameter.data)
        return self.criterion

    def _gather(self, embeddings: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The global batch in its own order, on every process, with a graph; so every loss sees all its samples.

        The gather's backward adds the processes' gradients and data parallelism averages them, which together leave
        the gradient of one process with the same batch.
        """
        if self.accelerator.num_processes == 1:
            return embeddings, labels
        parts = distributed.all_gather(embeddings)  # type: ignore[no-untyped-call]
        gathered = self.accelerator.gather(labels).view(self.accelerator.num_processes, -1)
        return torch.stack(parts, dim=1).flatten(0, 1)[:size], gathered.T.flatten()[:size]

    # Watching ---------------------------------------------------------------------------------------------------------

    def _look(self, meter: "Meter", embeddings: Tensor, epoch: int, step: int) -> None:
        """Now and then: is the loss a number, are the embeddings still apart, where do we stand?"""
        now = self.progress.steps % LOG_EVERY == 0
        if embeddings.device.type != "cpu" and not now:
            return
        cosine = float(mean_cosine(embeddings.detach()))
        self._check_finite_loss(meter.last_loss, epoch, step)
        if not math.isfinite(cosine):
            self._diverged("the embeddings hold NaN or infinite values", epoch, step)
        if now:
            losses = {"batch/loss": float(meter.last_loss), "batch/mean_cosine": cosine}
            self.accelerator.log(losses, step=self.progress.steps)
            meter.describe(cosine)
        if self.collapse.begins(cosine, self.progress.steps):
            self._name_collapse(cosine, epoch)

    def _name_unspread(self, row: Row) -> None:
        """A network that starts in a narrow cone may take some epochs to spread; one that stays there has collapsed."""
        epoch = self.progress.epoch
        patience = min(self.recipe.epochs, self.recipe.warmup_epochs + UNSPREAD_EPOCHS)
        if row["mean_cosine"] > COLLAPSED and epoch >= patience:
            self._name_collapse(row["mean_cosine"], epoch)

    def _name_collapse(self, cosine: float, epoch: int) -> None:
        """Once in a run."""
        if not self.progress.collapse_named and self.accelerator.is_main_process:
            console.print(collapse_message(cosine, epoch, self.recipe), style="yellow", markup=False)
        self.progress.collapse_named = True

    def _check_finite_loss(self, loss: Tensor, epoch: int, step: int) -> None:
        if not math.isfinite(loss):
            self._diverged(f"the loss became {float(loss)}", epoch, step)

    @torch.no_grad()
    def _check_finite_inputs(self, inputs: Tensor, epoch: int, step: int) -> None:
        """The last step's update has not been through a loss yet: see that the network it left still embeds."""
        network = self.embedder.eval().head if self.recipe.cache_features else self.embedder.eval()
        if not torch.isfinite(network(inputs.to(self.accelerator.device))).all():
            self._diverged("the network gives NaN or infinite embeddings", epoch, step)

    def _diverged(self, what: str, epoch: int, step: int) -> None:
        kept = (
            f"the last good state, after epoch {self.progress.epoch}, is kept in {self.run.checkpoint}"
            if self.progress.epoch
            else "no epoch had finished"
        )
        raise DivergedError(
            f"{what} in epoch {epoch}, step {step}; {kept}. Try a lower backbone_lr ({self.recipe.backbone_lr:g}) or "
            f"proxy_lr ({self.recipe.proxy_lr:g}), warmup_epochs of 1 or more ({self.recipe.warmup_epochs}), or "
            f"precision bf16 or fp32 ({self.recipe.precision})"
        )

    # What is kept -----------------------------------------------------------------------------------------------------

    def _finish_epoch(self, epoch: int, row: Row) -> None:
        progress = self.progress
        best_before = max((past["val_map_at_r"] for past in progress.history if "val_map_at_r" in past), default=-1.0)
        progress.epoch = epoch
        progress.history.append(row)
        self.accelerator.log({f"epoch/{name}": value for name, value in row.items()}, step=self.progress.steps)
        if not self.accelerator.is_main_process:
            return
        self._name_unspread(row)
        if row.get("val_map_at_r", -1.0) > best_before:
            progress.best_epoch = epoch
            self.embedder.save(self.run.best(epoch))
        self._write_metrics()
        # Last of all: a kill before this line repeats the epoch, and everything above comes out the same.
        self._save_checkpoint()
        for folder in self.run.checkpoint.parent.glob("best-*"):
            if folder != self.run.best(progress.best_epoch):
                shutil.rmtree(folder)

    def _save_checkpoint(self) -> None:
        scaler = self.accelerator.scaler
        with atomic_write(self.run.checkpoint) as temporary:
            torch.save(
                {
                    "progress": asdict(self.progress),
                    "data": self._fingerprint(),
                    "embedder": self.embedder.state_dict(),
                    "criterion": self.criterion.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                    "scaler": None if scaler is None else scaler.state_dict(),
                },
                temporary,
            )

    def resume(self) -> None:
        """Go back to the last finished epoch; to the start where there is none.

        Raises:
            RunError: the checkpoint cannot be read, or the training images are not those that it was made with.
        """
        for half_written in self.run.checkpoint.parent.glob(".*.tmp"):
            half_written.unlink(missing_ok=True)  # by a process that was killed as it wrote
        if not self.run.checkpoint.exists():
            return
        try:
            state: dict[str, Any] = torch.load(self.run.checkpoint, map_location="cpu", weights_only=True)
            self._restore(state)
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise RunError(
                f"{self.run.checkpoint} cannot be read, or is not of the recipe beside it ({error}): put the recipe "
                "back, or start another run"
            ) from error

    def _restore(self, state: dict[str, Any]) -> None:
        if state["data"] != self._fingerprint():
            raise RunError(
                f"{self.recipe.catalog} has {self._fingerprint()}, but {self.run.path} was trained on {state['data']}: "
                "put the old catalog back, or start another run"
            )
        self.embedder.load_state_dict(state["embedder"])
        self.criterion.load_state_dict(state["criterion"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])

    def _fingerprint(self) -> str:
        columns = ["path", "label", *(column for column in BOX_COLUMNS if column in self.train_images.table)]
        rows = self.train_images.table[columns].to_csv(index=False)
        digest = hashlib.sha256(rows.encode()).hexdigest()[:12]
        return f"{len(self.train_images)} training images of {len(self.embedder.classes)} classes ({digest})"

    def _write_metrics(self) -> None:
        with atomic_write(self.run.metrics) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.progress.history[0]))
            writer.writeheader()
            writer.writerows(self.progress.history)

    def _write_model(self) -> None:
        """The last epoch's model, or the one that the validation classes chose."""
        if self.accelerator.is_main_process:
            chosen = (
                Embedder.load(self.run.best(self.progress.best_epoch)) if self.progress.best_epoch else self.embedder
            )
            chosen.save(self.run.path)
        self.accelerator.wait_for_everyone()


def fit(recipe: Recipe, run: RunFolder) -> None:
    """Start a run: write its recipe, train, and leave model, checkpoint and metrics in its folder.

    Raises:
        UserError: see the kinds in errors.py; a run that cannot start leaves no folder behind.
    """
    run.check_first_start()
    check_learning_rates(recipe)
    training = Training(recipe, run)
    if training.accelerator.is_main_process:
        run.start(recipe)
    training.accelerator.wait_for_everyone()
    training.accelerator.init_trackers("proxygml")
    training.fit()


def check_learning_rates(recipe: Recipe) -> None:
    """Raise RecipeError where the proxies alone would learn, and the network stay as it is."""
    settings = recipe.embedder
    head = bool(settings.embedding_size) or (settings.pooling == "gem" and not recipe.cache_features)
    if recipe.epochs and not recipe.backbone_lr and not (recipe.embedding_lr and head):
        raise RecipeError(
            f"backbone_lr is 0, embedding_lr is {recipe.embedding_lr:g} and embedder.embedding_size is "
            f"{settings.embedding_size}: nothing of the network would learn; give one a learning rate (and a linear "
            "layer to train), or epochs 0 to judge the network as it is"
        )


def check_batch_division(recipe: Recipe, accelerator: Accelerator) -> None:
    """Raise RecipeError where features are to be normalised over a batch of which each process sees its share alone."""
    whole = accelerator.num_processes == 1 or accelerator.device.type == "cuda"  # PyTorch joins those of GPUs
    if recipe.embedder.feature_norm == "batch" and not whole:
        raise RecipeError(
            "embedder.feature_norm is batch, but on CPUs several processes cannot normalise by the whole batch: "
            "take layer, or one process"
        )


def resume(run: RunFolder) -> None:
    """Go on with a run where it stopped; the result is that of a run that did not stop."""
    training = Training(run.read_recipe(), run)
    training.resume()
    training.accelerator.init_trackers("proxygml")
    training.fit()


def mislabelled(labels: Labels, num_classes: int, share: float, seed: int) -> Labels:
    """Class numbers (n,) of which the share, rounded, is replaced by another class, each equally likely; seeded.

    Raises:
        RecipeError: there is no other class.
    """
    if share and num_classes < 2:
        raise RecipeError(f"label_noise is {share}, but there is one training class alone: no label can be wrong")
    generator = np.random.default_rng((seed, 0x1ABE1))  # a stream of its own: it shifts no other draw
    wrong = generator.permutation(len(labels))[: round(share * len(labels))]
    labels = labels.copy()
    labels[wrong] = (labels[wrong] + generator.integers(1, max(num_classes, 2), size=len(wrong))) % num_classes
    return labels


def start_embedder(embedder: Embedder, images: Catalog, accelerator: Accelerator, recipe: Recipe) -> None:
    """Start its linear layer from the features of the training images.

    Raises:
        RecipeError: there are fewer directions in them than the embedding has.
    """
    linear = embedder.head.linear
    assert isinstance(linear, nn.Linear)  # the recipe asks for an embedding size
    start_embedding(linear, start_features(embedder, images, accelerator, recipe), recipe.whitening)


def start_features(embedder: Embedder, images: Catalog, accelerator: Accelerator, recipe: Recipe) -> Tensor:
    """The features, as training will see them: those that are cached, or of one view and the backbone's own map."""
    as_trained = not recipe.cache_features
    return cached_features(embedder, images, accelerator, workers=recipe.workers, as_trained=as_trained)


def make_accelerator(recipe: Recipe, folder: Path | None = None) -> Accelerator:
    """Accelerate as the recipe wants it.

    Raises:
        RecipeError: a precision or a tracker that this machine does not have.
    """
    check_precision(recipe)
    precision = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[recipe.precision]
    logs = (
        None if folder is None or recipe.tracker == "none" else ProjectConfiguration(str(folder), str(folder / "logs"))
    )
    # Accelerate remembers the first precision of a process for good; a second run may want another.
    AcceleratorState._reset_state()
    try:
        return Accelerator(
            mixed_precision=precision,
            log_with=None if logs is None else recipe.tracker,
            project_config=logs,
            # Some of timm's backbones own parameters that their feature maps do not depend on.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:
        raise RecipeError(f"precision {recipe.precision} cannot be had here: {error}") from error


def check_precision(recipe: Recipe) -> None:
    """Raise RecipeError for a precision or a tracker that this machine does not have."""
    if recipe.precision == "fp16" and not torch.cuda.is_available():
        raise RecipeError("precision is fp16, which needs a GPU: take bf16 or fp32 here")
    if recipe.tracker != "none" and find_spec(recipe.tracker) is None:
        raise RecipeError(f"tracker is {recipe.tracker}, which is not installed: pip install {recipe.tracker}, or none")


def split_for_training(recipe: Recipe) -> tuple[Catalog, Catalog | None]:
    """The training images, and those of the classes that choose the epoch.

    Raises:
        CatalogError: the catalog is missing or of no use.
        RecipeError: it brings a validation split of its own and the recipe asks for another.
    """
    if not recipe.catalog:
        raise CatalogError("no catalog is given: name the table of images with --catalog")
    catalog = Catalog.read(recipe.catalog)
    check_splits(catalog)
    has_validation = bool((catalog.table["split"] == "val").any())
    if recipe.validation_classes and has_validation:
        raise RecipeError(
            f"validation_classes is {recipe.validation_classes}, but {recipe.catalog} has a val split already: "
            "set validation_classes to 0 to use it"
        )
    if recipe.validation_classes:
        catalog, has_validation = hold_out_classes(catalog, recipe.validation_classes, recipe.seed), True
    return catalog.split("train"), catalog.split("val") if has_validation else None


def make_optimizers(recipe: Recipe, embedder: Embedder, criterion: nn.Module) -> list[torch.optim.Optimizer]:
    """Adam over three groups, each with its own learning rate (see set_learning_rates).

    Proxies with sparse gradients are a LazyAdam's, a second optimiser.
    """
    groups = [
        {"name": "backbone", "params": list(embedder.backbone.parameters())},
        {"name": "embedding", "params": [*embedder.pool.parameters(), *embedder.head.parameters()]},
        {"name": "proxy", "params": list(criterion.parameters())},
    ]
    settings = {"lr": 0.0, "eps": recipe.eps, "weight_decay": recipe.weight_decay}
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    if not recipe.loss.sparse:
        return [kind(groups, **settings, fused=True)]
    return [
        kind(groups[:2], **settings, fused=True),
        LazyAdam(groups[2:], lr=0.0, eps=recipe.eps, weight_decay=recipe.weight_decay),
    ]


def set_learning_rates(optimizers: Sequence[torch.optim.Optimizer], recipe: Recipe, finished: float) -> Row:
    """Set and return each group's learning rate for the step after so many epochs, fractions included."""
    factor = schedule_factor(recipe, finished)
    bases = {"backbone": recipe.backbone_lr, "embedding": recipe.embedding_lr, "proxy": recipe.proxy_lr}
    for group in chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
        group["lr"] = bases[group["name"]] * factor
    return {f"{name}_lr": base * factor for name, base in bases.items()}


def schedule_factor(recipe: Recipe, finished: float) -> float:
    """What the learning rates are multiplied by after so many epochs, fractions included."""
    if recipe.schedule == "steps":
        return recipe.decay ** sum(finished >= milestone for milestone in recipe.milestones)
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * math.floor(finished) / recipe.epochs))
    share = finished / recipe.epochs
    if share < RISE:
        return share / RISE
    return 0.5 * (1 + math.cos(math.pi * (share - RISE) / (1 - RISE)))


def mean_cosine(embeddings: Tensor) -> Tensor:
    """Mean cosine between two different rows of L2-normalised (M, D): near 1 when all point the same way."""
    count = len(embeddings)
    return (embeddings.sum(dim=0).square().sum() - count) / max(count * (count - 1), 1)


class CollapseWatch:
    """Notices when the embeddings of the batches start to gather in one direction.

    A network may start that way and spread; so only a rise after some spread counts, smoothed over some 20 batches.
    """

    def __init__(self) -> None:
        self.smoothed: float | None = None
        self.least = math.inf
        self.step = 0

    def begins(self, cosine: float, step: int) -> bool:
        """Take the mean cosine of the batch of a step; whether a collapse shows."""
        memory = 0.95 ** max(step - self.step, 1)
        self.smoothed = cosine if self.smoothed is None else memory * self.smoothed + (1 - memory) * cosine
        self.step = step
        self.least = min(self.least, self.smoothed)
        return self.smoothed > COLLAPSED and self.smoothed > self.least + 0.1


def collapse_message(cosine: float, epoch: int, recipe: Recipe) -> str:
    """What to say of a collapse, and what to try."""
    warm_up = "" if recipe.warmup_epochs else "a warm-up (warmup_epochs 1), "
    return (
        f"collapse: in epoch {epoch} the mean cosine between the embeddings of a batch is {cosine:.2f}; they hardly "
        f"differ, even where the loss looks healthy. Try {warm_up}a lower backbone_lr than {recipe.backbone_lr:g} "
        f"or a higher proxy_lr than {recipe.proxy_lr:g}"
    )


class Meter:
    """Means over an epoch, kept on the device so that counting does not wait for it."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.images = 0
        self.steps = 0
        self.last_loss = torch.zeros(())
        self.loss = torch.zeros((), dtype=torch.float64)
        self.cosine = torch.zeros((), dtype=torch.float64)
        self.note = ""

    def add(self, loss: Tensor, embeddings: Tensor) -> None:
        """Count a step."""
        self.last_loss = loss.detach()
        self.loss = self.loss.to(loss.device) + self.last_loss
        self.cosine = self.cosine.to(loss.device) + mean_cosine(embeddings.detach())
        self.images += len(embeddings)
        self.steps += 1

    def describe(self, cosine: float) -> None:
        """Renew the note beside the progress bar."""
        self.note = f"loss {float(self.last_loss):.3f}, mean cosine {cosine:.2f}, {self.images_per_second:.0f} images/s"

    @property
    def images_per_second(self) -> float:
        return self.images / (time.perf_counter() - self.start)

    def means(self) -> Row:
        """The epoch's loss, mean cosine, seconds and images per second."""
        return {
            "loss": float(self.loss) / self.steps,
            "mean_cosine": float(self.cosine) / self.steps,
            "seconds": round(time.perf_counter() - self.start, 3),
            "images_per_second": round(self.images_per_second, 1),
        }


class ProxyCounter:
    """Counts how often each proxy is kept in the sub-graph of a sample of another class."""

    def __init__(self, criterion: ProxyGMLLoss) -> None:
        self.criterion = criterion
        self.counts = torch.zeros(len(criterion.proxies), dtype=torch.int64, device=criterion.proxies.device)

    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Count the sub-graphs of a batch."""
        kept = self.criterion.select(embeddings.detach(), labels)
        others = kept // self.criterion.proxies_per_class != labels[:, None]
        self.counts.index_add_(0, kept.flatten(), others.flatten().to(self.counts.dtype))

    def write(self, path: Path, classes: tuple[str, ...]) -> None:
        """Write a row a proxy: its class, its number within the class, how often it was kept."""
        per_class = self.criterion.proxies_per_class
        with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "proxy", "kept"])
            for row, count in enumerate(self.counts.tolist()):
                writer.writerow([classes[row // per_class], row % per_class, count])


class FeatureDataset(Dataset[tuple[Tensor, int]]):
    """Cached features in place of images: item i is (float32 (F,), i)."""

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def set_epoch(self, epoch: int) -> None:
        """Nothing varies from epoch to epoch."""

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.features[index], index


TrainingData = ImageDataset | FeatureDataset
Loader = DataLoader[tuple[Tensor, int]]
