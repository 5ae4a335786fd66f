"""Training: the method as a loop, in the paper's order. What each step consists of is in the files beside this one.

It reads a recipe and a catalog and fills a run folder with a model. It does not look at the test classes.
"""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from proxygml.console import note, progress_bar
from proxygml.data.catalog import Catalog
from proxygml.files import remove_leftovers
from proxygml.kept_memory import freed_memory_kept
from proxygml.loss.proxygml_loss import ProxyGMLLoss
from proxygml.models.embedder import Embedder
from proxygml.training.checkpoint import Checkpoints, EpochMetrics, Progress, training_data_fingerprint
from proxygml.training.continuation import take_proxies
from proxygml.training.criterion import make_criterion
from proxygml.training.features import cached_features, embed_catalog, embed_features
from proxygml.training.history import write_history
from proxygml.training.initialization import initial_embedder, start_embeddings, start_proxies
from proxygml.training.loading import Loader, TrainingData, training_data, training_loader
from proxygml.training.monitoring import Meter, Monitor, ProxyCounter, mean_cosine
from proxygml.training.optimization import check_learning_rates, freeze, make_optimizers, set_learning_rates
from proxygml.training.prefixes import PrefixLosses
from proxygml.training.processes import (
    data_parallel,
    gather_batch,
    make_accelerator,
    of_main_process,
    own_part,
    process_group,
    share_batch_statistics,
    share_overflow,
    start_tracking,
)
from proxygml.training.quarter_turns import turned_labels, turned_names
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.sampler import Batches
from proxygml.training.splits import mislabelled, split_for_training
from proxygml.training.validation import kept_message, validation_message, validation_metrics


def fit(recipe: Recipe, run: RunFolder) -> None:
    """Start a run: write its recipe, train, and leave model, checkpoint and metrics in its folder.

    Raises:
        UserError: see the kinds in errors.py; a run that cannot start leaves no folder behind.
    """
    run.check_first_start()
    check_learning_rates(recipe)
    accelerator = make_accelerator(recipe, run.path)
    with _locked(run, accelerator):
        if accelerator.is_main_process:
            run.check_first_start()  # again: another process may have started and finished it before the lock was free
        training = Training(recipe, run, accelerator)
        start_tracking(accelerator, recipe)
        if accelerator.is_main_process:
            run.start(recipe)
        accelerator.wait_for_everyone()
        training.run_to_end()


def resume(run: RunFolder) -> None:
    """Go on with a run where it stopped; the result is that of a run that did not stop.

    Raises:
        RunError: the checkpoint cannot be read, or the training images are not those that it was made with.
        OverwriteError: another process is training this run.
    """
    recipe = run.read_recipe()
    accelerator = make_accelerator(recipe, run.path)
    with _locked(run, accelerator):
        if accelerator.is_main_process:
            remove_leftovers(run.checkpoints)
        training = Training(recipe, run, accelerator)
        if accelerator.is_main_process and training.progress.epoch >= recipe.epochs:
            note(f"{run.path} has been trained to its end: no epoch is left")
        start_tracking(accelerator, recipe)
        training.run_to_end()


def _locked(run: RunFolder, accelerator: Accelerator) -> AbstractContextManager[None]:
    """The run's lock, which the main process holds for all processes of a training."""
    return run.locked() if accelerator.is_main_process else nullcontext()


class Training:
    """One run: network, loss, optimisers and data; alike on all processes, but for the proxies of their classes.

    They are as the recipe starts them; or, where the run folder has a checkpoint, as that one left them.
    """

    def __init__(self, recipe: Recipe, run: RunFolder, accelerator: Accelerator) -> None:
        self.recipe = recipe
        self.run = run
        self.accelerator = accelerator
        self.train_images, self.validation_images = split_for_training(recipe, own=False)
        classes = self.train_images.classes
        numbers = mislabelled(self.train_images.class_numbers, len(classes), recipe.label_noise, recipe.seed)
        labels = torch.from_numpy(numbers)
        turned = recipe.images.quarter_turns
        self.labels = turned_labels(labels, len(classes)) if turned else labels
        self.classes = turned_names(tuple(classes)) if turned else tuple(classes)
        processes = accelerator.process_index, accelerator.num_processes
        self.batches = Batches(self.labels.numpy(), recipe.batch_size, recipe.images_per_class, recipe.seed, *processes)

        restored = of_main_process(run.checkpoint)
        is_new = restored is None
        self.embedder = initial_embedder(
            recipe, classes, self.accelerator, (self.train_images, labels), restored=not is_new
        )
        share_batch_statistics(self.embedder, recipe, self.accelerator)
        group = process_group(self.accelerator)
        self.criterion = make_criterion(recipe.loss, len(self.classes), self.embedder.embedding_size, group)
        self.criterion.to(self.accelerator.device)
        self.prefixes = PrefixLosses(recipe, self.criterion, len(self.classes), self.embedder.embedding_size, group)
        self.shard_group = self.criterion.process_group if isinstance(self.criterion, ProxyGMLLoss) else None
        if is_new and isinstance(self.criterion, ProxyGMLLoss):
            self._start_proxies(self.criterion)
        optimizers = make_optimizers(recipe, self.embedder, self.criterion)
        self.optimizers = [self.accelerator.prepare_optimizer(optimizer) for optimizer in optimizers]
        self.checkpoints = Checkpoints(
            run.checkpoints,
            self.accelerator,
            self.embedder,
            self.criterion,
            self.optimizers,
            recipe.catalog,
            training_data_fingerprint(self.train_images, recipe.takes_vectors),
        )
        self.progress = Progress() if restored is None else self.checkpoints.restore(restored)
        self.monitor = Monitor(recipe, run.checkpoints, self.accelerator, self.progress)
        self.validation_features: Tensor | None = None

    def _start_proxies(self, criterion: ProxyGMLLoss) -> None:
        old = self.recipe.start_from
        if self.recipe.proxy_start == "features" or old:
            blocks = start_embeddings(self.embedder, self.train_images, self.accelerator, self.recipe)
            start_proxies(criterion, blocks, self.labels)
        if old:
            take_proxies(criterion, self.train_images.classes, Path(old))

    @freed_memory_kept()
    def run_to_end(self) -> None:
        """Train all epochs that are left, and write the model that the protocol chooses."""
        try:
            self._train()
        finally:  # the process may train on: the next run must not be tracked as this one
            for tracker in self.accelerator.trackers:  # and not end_training(), which ends the process group
                tracker.finish()

    # The method, from top to bottom -----------------------------------------------------------------------------------

    def _train(self) -> None:
        data, loader = self.open_data()
        if self.progress.epoch == 0 and self.validation_images is not None and self.recipe.start_is_judged:
            self._judge_start(self.validation_images)
        for epoch in range(self.progress.epoch + 1, self.recipe.epochs + 1):
            self.batches.set_epoch(epoch)
            data.set_epoch(epoch)
            metrics = self._train_epoch(epoch, loader)
            if self.validation_images is not None:
                metrics |= validation_metrics(self._embed_validation(), self.validation_images, self.accelerator)
            self._finish_epoch(epoch, metrics)
        self._write_model()

    def _judge_start(self, validation: Catalog) -> None:
        """Let the network before the first step be a candidate: then training can only add to its projection."""
        progress = self.progress
        progress.start = {"epoch": 0} | validation_metrics(self._embed_validation(), validation, self.accelerator)
        if self.accelerator.is_main_process:
            self.embedder.save(self.run.best(0))
            note(f"epoch 0, before the first step: {validation_message(progress.start)}")
            write_history(self.run.metrics, progress.epochs)

    def _train_epoch(self, epoch: int, loader: Loader) -> EpochMetrics:
        # For dropout and the like; images and batches have their own.
        set_seed(int(np.random.SeedSequence((self.recipe.seed, epoch)).generate_state(1)[0]))
        freeze(self.embedder, self.recipe, epoch)
        trained = self.embedder.head if self.recipe.cache_features else self.embedder
        network = data_parallel(trained, self.accelerator)
        # Proxies of different classes on each process are not to be averaged.
        criterion = self.criterion if self.shard_group else data_parallel(self.criterion, self.accelerator)
        meter, counter = Meter("vectors" if self.recipe.takes_vectors else "images"), self._proxy_counter(epoch)
        for step, (inputs, own_labels, size) in enumerate(self._steps(epoch, loader, meter), start=1):
            rates = set_learning_rates(self.optimizers, self.recipe, epoch - 1 + (step - 0.5) / len(loader))
            # A loss that is divided by class takes each process's part of the batch, any other one the whole of it.
            part = own_part if self.shard_group else gather_batch
            embeddings, labels = part(network(inputs), own_labels, size, self.accelerator)
            cosine = mean_cosine(embeddings.detach(), size, self.shard_group)
            self.monitor.look(meter, cosine, epoch, step)
            loss = self.prefixes(criterion, embeddings, labels)
            self.accelerator.backward(loss)
            self._take_step()
            self.progress.steps += 1
            meter.add(loss, cosine, size)
            if counter is not None:
                counter.add(embeddings.detach(), labels)
        # What follows, validation first, sees the network as it will be saved: without mixed precision around it.
        self.accelerator.unwrap_model(network, keep_fp32_wrapper=False)
        self.monitor.check_finite_loss(meter.last_loss, epoch, step)
        self.monitor.check_finite_network(trained, inputs, epoch, step)
        if counter is not None:
            counter.write(self.run.proxies, self.classes, self.accelerator.is_main_process)
        return {"epoch": epoch, **meter.means(), **rates}

    def _take_step(self) -> None:
        loss = self.criterion
        if self.accelerator.scaler is not None and isinstance(loss, ProxyGMLLoss) and loss.process_group is not None:
            assert loss.proxies.grad is not None
            share_overflow(loss.proxies.grad, [*self.embedder.parameters(), loss.proxies], loss.process_group)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def _proxy_counter(self, epoch: int) -> ProxyCounter | None:
        """For the last epoch of a loss that has sub-graphs; where each process has all proxies, on the main one."""
        if epoch < self.recipe.epochs or not isinstance(self.criterion, ProxyGMLLoss):
            return None
        return ProxyCounter(self.criterion) if self.shard_group or self.accelerator.is_main_process else None

    def _finish_epoch(self, epoch: int, metrics: EpochMetrics) -> None:
        """Log the epoch, keep its model where it is the best so far, and save the checkpoint."""
        progress = self.progress
        best_before = max((past.get("val_map_at_r", -1.0) for past in progress.epochs), default=-1.0)
        progress.epoch = epoch
        progress.history.append(metrics)
        self.accelerator.log({f"epoch/{name}": value for name, value in metrics.items()}, step=progress.steps)
        self.monitor.warn_if_unspread(metrics)
        is_best = metrics.get("val_map_at_r", -1.0) > best_before
        if is_best:
            progress.best_epoch = epoch
        is_main_process = self.accelerator.is_main_process
        if is_main_process:
            if is_best:
                self.embedder.save(self.run.best(epoch))
            if self.validation_images is not None:
                remark = ", the highest MAP@R so far" if is_best else ""
                note(f"epoch {epoch}: {validation_message(metrics)}{remark}")
            write_history(self.run.metrics, progress.epochs)
        # Last of all: a kill before this line repeats the epoch, and everything above comes out the same.
        self.checkpoints.save(progress)
        for folder in self.run.checkpoints.glob("best-*") if is_main_process else ():
            if folder != self.run.best(progress.best_epoch):
                shutil.rmtree(folder)

    def _write_model(self) -> None:
        """The last epoch's model, or the one that the validation classes chose."""
        if self.accelerator.is_main_process:
            best, judged = self.progress.best_epoch, self.progress.best_epoch or self.progress.start
            chosen = Embedder.load(self.run.best(best)) if judged else self.embedder
            chosen.save(self.run.path)
            note(kept_message(self.progress))
        self.accelerator.wait_for_everyone()

    # Data -------------------------------------------------------------------------------------------------------------

    def open_data(self) -> tuple[TrainingData, Loader]:
        """The training data, and the loader that makes batches of it."""
        data = training_data(self.recipe, self.embedder, self.train_images, self.accelerator)
        return data, training_loader(self.recipe, data, self.batches, self.accelerator.device)

    def _steps(self, epoch: int, loader: Loader, meter: Meter) -> Iterator[tuple[Tensor, Tensor, int]]:
        """This process's inputs and labels and the size of the global batch, with a progress bar."""
        device = self.accelerator.device
        with progress_bar(disable=not self.accelerator.is_main_process) as bar:
            task = bar.add_task(f"Epoch {epoch}/{self.recipe.epochs}", total=len(loader), note="")
            for (inputs, indices), size in zip(loader, self.batches.sizes, strict=True):
                labels = self.labels[indices].to(device, non_blocking=True)
                yield inputs.to(device, non_blocking=True), labels, size
                bar.update(task, advance=1, note=meter.note)
            meter.describe_means()
            bar.update(task, note=meter.note)

    def _embed_validation(self) -> Tensor:
        """Those of this process's part of the validation images."""
        assert self.validation_images is not None
        images, workers = self.validation_images, self.recipe.workers
        if not self.recipe.cache_features or self.recipe.takes_vectors:
            return embed_catalog(self.embedder, images, self.accelerator, workers=workers, cached=False)
        if self.validation_features is None:
            self.validation_features = cached_features(
                self.embedder, images, self.accelerator, workers=workers, own_part=True
            )
        return embed_features(self.embedder.eval(), self.validation_features)
