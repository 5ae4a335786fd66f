"""Running a comparison: every cell an ordinary run folder, what is done is skipped, what was stopped goes on.

    <folder>/<method>/tune/00, 01, ...    the trials; judged on validation classes, never on the test classes
    <folder>/<method>/seed-0, seed-1, ... the cells; each looks at the test classes once, when it has been trained

Several machines share the work by a fixed division, not by claims: it needs no lock that a network file system may
not keep and that a killed machine would leave behind.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from shlex import quote
from statistics import median
from typing import Any

# Evaluation would load some of these late, and the memory of the first cell would seem smaller than that of the others.
import faiss  # noqa: F401
import pandas as pd
import sklearn.metrics  # noqa: F401
import torch
from accelerate import PartialState

from proxygml.comparison.plan import Comparison, Method, Values, described, differences
from proxygml.comparison.tables import fingerprints, read_rows
from proxygml.console import console
from proxygml.data.catalog import Catalog
from proxygml.data.transforms import ImageSettings
from proxygml.errors import DivergedError, RecipeError, RunError, UserError
from proxygml.files import atomic_write
from proxygml.models.backbones import check_weights_file
from proxygml.models.embedder import Embedder, EmbedderSettings
from proxygml.training.criterion import make_criterion
from proxygml.training.evaluate_run import evaluate_run
from proxygml.training.initialization import check_directions
from proxygml.training.optimization import check_learning_rates
from proxygml.training.processes import check_batch_division, check_precision, make_accelerator
from proxygml.training.recipe import Recipe, flattened
from proxygml.training.run_folder import RunFolder
from proxygml.training.sampler import check_batch_classes
from proxygml.training.splits import split_for_training
from proxygml.training.trainer import fit, resume

AT_WILL = ("workers", "tracker")  # keys that change no result: a cell may go on under others
TRIALS = "tune"  # the folder of a method's trials
MIB = 2**20

Job = tuple[Method, Sequence[int]]  # a method and the seeds to train it with
Key = tuple[str, int, int | None]  # of a cell or a trial: method, seed, and number of the trial
Network = tuple[EmbedderSettings, ImageSettings]
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Which share of the work is done here: part `number` of `count`, counted from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def read(cls, text: str) -> "Part":
        """2/8 -> part 2 of 8.

        Raises:
            RecipeError: it is no such part.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise RecipeError(f"the part is {text!r}, but must be like 2/8: the second of eight")
        return cls(int(found[1]), int(found[2]))

    def of_all(self, jobs: Sequence["Job"]) -> Sequence["Job"]:
        """The jobs of this part: every `count`-th, so that costly neighbours go to different machines."""
        return jobs[self.number - 1 :: self.count]


@dataclass(frozen=True)
class Cost:
    """What training a cell took: cost.json. Written last of all, so that it says that the training is over."""

    seconds_per_epoch: float  # the median over its epochs
    peak_memory_mib: float | None  # of this process while it trained; workers that decode images come on top
    gpu_memory_mib: float | None  # the peak of what tensors took on the GPU
    device: str
    loss_parameters: int  # numbers that the loss learns: proxies, class weights


@dataclass(frozen=True)
class Cell:
    """A training run of the comparison and what it leaves beside an ordinary run's files."""

    method: str
    seed: int
    run: RunFolder
    trial: int | None = None  # its number where it is a trial

    @property
    def key(self) -> Key:
        return self.method, self.seed, self.trial

    @property
    def cost(self) -> Path:
        return self.run.path / "cost.json"

    @property
    def diverged(self) -> Path:
        """Why there is no model: the message of training that gave no numbers."""
        return self.run.path / "diverged.txt"

    @property
    def finished(self) -> bool:
        judged = self.trial is not None or self.run.evaluation.exists()
        return (judged and self.cost.exists()) or self.diverged.exists()

    @property
    def name(self) -> str:
        return f"{self.method}, " + (f"seed {self.seed}" if self.trial is None else f"trial {self.trial}")


class Cells:
    """The cells of a comparison in their folder: run those that are left, choose among trials, gather the rows.

    Args:
        comparison: what is compared.
        folder: where the cells lie; a comparison that was stopped, or that has grown, goes on there.
        known: rows of an earlier `gather`, whose runs are gone: what they tell is not trained again.

    Raises:
        UserError: the catalog is missing or of no use, a method names no loss or network that there is, or could not
            learn, the known rows are of other data or another protocol, or the folder holds cells of other data, or
            rows that would be lost.
    """

    def __init__(self, comparison: Comparison, folder: Path, known: pd.DataFrame | None = None) -> None:
        self.comparison = comparison
        self.folder = folder
        # Joins the processes as the runs will, for every PartialState() below.
        self.accelerator = make_accelerator(comparison.shared)
        self.has_validation = split_for_training(comparison.shared)[1] is not None
        catalog = Catalog.read(comparison.shared.catalog)
        catalog.split("test")  # named when it is missing, before anything is trained
        self.data, self.data_fingerprint = Path(comparison.shared.catalog).stem, catalog.fingerprint
        self.protocol = _described_differences(comparison.shared.content(), Recipe().content())
        self.trials = {method.name: comparison.trials_of(method) for method in comparison.methods}
        self.known = {} if known is None else self._by_key(known)
        self._check_methods()
        self.weights = self._digests()
        self._check_folder()

    def _check_methods(self) -> None:
        """Name a method that cannot be trained before hours are spent on those before it."""
        sizes: dict[Network, tuple[int, int]] = {}
        training: dict[float, Catalog] = {}  # the training images, by the share of classes that is held out
        for method in self.comparison.methods:
            for number, recipe in enumerate(self._recipes(method)):
                try:
                    self._check_trainable(recipe, sizes)
                    if recipe.validation_classes not in training:
                        training[recipe.validation_classes] = split_for_training(recipe)[0]
                    _check_enough_images(recipe, training[recipe.validation_classes], *sizes[_network(recipe)])
                except UserError as error:
                    tried = number < len(self.trials[method.name]) and not self.has_validation
                    share = f" in its trials, which hold out {self.comparison.tune_on} of the classes" if tried else ""
                    raise RecipeError(f"{self.comparison.where}: {method.name}{share}: {error}") from error

    def _check_trainable(self, recipe: Recipe, sizes: dict[Network, tuple[int, int]]) -> None:
        """Name what no images could mend, and note of a new network the sizes of its embeddings and its features."""
        check_learning_rates(recipe)
        check_precision(recipe)
        check_batch_division(recipe, self.accelerator)
        if not recipe.loss.is_ours:
            make_criterion(recipe.loss, num_classes=2, embedding_size=2)
        network = _network(recipe)
        if network not in sizes:
            built = Embedder(*network)
            sizes[network] = built.embedding_size, built.num_features

    def _recipes(self, method: Method) -> Iterator[Recipe]:
        """Those of a method's trials, and of the first cell that each would lead to."""
        for values in self.trials[method.name]:
            yield self._trial_recipe(method, values)
        for values in self.trials[method.name] or [{}]:
            yield self.comparison.recipe_of(method, values, self.comparison.seeds[0])

    def _digests(self) -> dict[str, str]:
        """What the files of weights hold, by the names that rows know them by, as far as they are here."""
        recipes = chain.from_iterable(map(self._recipes, self.comparison.methods))
        digests: dict[str, str] = {}
        for path in sorted({Path(recipe.embedder.weights) for recipe in recipes}):
            if path.is_file():
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
                if digests.setdefault(path.name, digest) != digest:
                    raise RecipeError(
                        f"two different files of weights are called {path.name}, and rows know them by that: rename one"
                    )
        return digests

    def _check_folder(self) -> None:
        """Refuse to mix cells of different data, and to write over rows whose runs are gone."""
        if (self.folder / "recipe.yaml").exists() or self.folder.is_file():
            raise RunError(f"{self.folder} is a run or a file of its own: give the comparison another --run")
        kept = self._kept_data()
        found = kept.get("fingerprint", self.data_fingerprint)
        if found != self.data_fingerprint:
            raise RunError(
                f"{self.folder} holds cells of other images, labels or splits (fingerprint {found}) than "
                f"{self.comparison.shared.catalog} ({self.data_fingerprint}): put the old catalog back, or give "
                "the comparison another --run"
            )
        for name, digest in self.weights.items():
            if kept.get("weights", {}).get(name, digest) != digest:
                raise RunError(
                    f"{self.folder} holds cells that started from another file {name} than the one that is given: put "
                    "the old one back, or give the comparison another --run"
                )
        if not self.rows_file.exists():
            return
        for method, seed, trial in _keys(read_rows([self.rows_file])):
            cell = self._at(method, seed, trial)
            if cell.key not in self.known and not cell.run.path.exists():
                raise RunError(
                    f"{self.rows_file} has a row of {cell.name}, whose run is not there, and which would be lost: keep "
                    f"it by --from {self.rows_file}, or move the file away"
                )

    @property
    def rows_file(self) -> Path:
        """Where a comparison leaves its rows."""
        return self.folder / "cells.csv"

    @property
    def _data_file(self) -> Path:
        return self.folder / "data.json"

    def _kept_data(self) -> dict[str, Any]:
        """What the cells of the folder were trained with; nothing in a folder without any."""
        found: dict[str, Any] = (
            json.loads(self._data_file.read_text(encoding="utf-8")) if self._data_file.exists() else {}
        )
        return found

    def _by_key(self, rows: pd.DataFrame) -> dict[Key, Row]:
        prints = fingerprints(rows)
        for what, found, asked in (
            # As the table will have it: rows without a fingerprint are known by their names, and then all are.
            ("data", rows["data"] if prints.isna().any() else rows["data"].iloc[:0], self.data),
            ("data_fingerprint", prints.dropna(), self.data_fingerprint),
            ("protocol", rows["protocol"], self.protocol),
        ):
            for other in found[found != asked]:
                one, two = (set(str(text).split("; ")) for text in (other, asked))
                apart = (", ".join(sorted(parts)) or "defaults" for parts in (one - two, two - one))
                raise RunError(
                    f"the rows are of {what} {next(apart)}, but the comparison is of {next(apart)}: leave them out"
                )
        keys = _keys(rows)
        methods = self.comparison.methods
        planned: set[Key] = {(method, seed, None) for method, seed in self.planned()}
        planned |= {self.trial(method, number).key for method in methods for number in self._numbers(method)}
        for key in keys:
            if keys.count(key) > 1:
                raise RunError(f"{key[0]}, seed {key[1]}, comes twice in the rows: give each row once")
            if key not in planned:
                raise RunError(
                    f"a row is of {key[0]}, seed {key[1]}{'' if key[2] is None else f', trial {key[2]}'}, which the "
                    "comparison does not ask for, and would be lost: put it into the recipe, or leave the row out"
                )
        return dict(zip(keys, rows.to_dict("records"), strict=True))

    def _numbers(self, method: Method) -> range:
        """The numbers of a method's trials."""
        return range(len(self.trials[method.name]))

    def cell(self, method: Method, seed: int) -> Cell:
        """Where a method is trained with a seed."""
        return self._at(method.name, seed, None)

    def trial(self, method: Method, number: int) -> Cell:
        """Where a setting of a method is tried."""
        return self._at(method.name, self.comparison.seeds[0], number)

    def _at(self, method: str, seed: int, trial: int | None) -> Cell:
        place = Path(f"seed-{seed}") if trial is None else Path(TRIALS, f"{trial:02d}")
        return Cell(method, seed, RunFolder(self.folder / method / place), trial)

    def planned(self) -> list[tuple[str, int]]:
        """The method and seed of every cell that there should be."""
        return [(method.name, seed) for method in self.comparison.methods for seed in self.comparison.seeds]

    # Running ----------------------------------------------------------------------------------------------------------

    def run(self, part: Part) -> None:
        """Train and judge what is left of a part, cell by cell.

        Raises:
            UserError: a method cannot be trained, or a cell there was trained by another recipe.
        """
        self._check_other_settings()
        self._check_weights()
        if PartialState().is_main_process:
            weights = self._kept_data().get("weights", {}) | self.weights
            data = {"data": self.data, "fingerprint": self.data_fingerprint, "weights": weights}
            _write(self._data_file, json.dumps(data) + "\n")
        jobs = part.of_all(self.jobs())
        for number, (method, seeds) in enumerate(jobs, start=1):
            for place, values in enumerate(self.trials[method.name]):
                self._run(self.trial(method, place), self._trial_recipe(method, values), f"{number} of {len(jobs)}")
            chosen = self.chosen(method)
            if method.tune and chosen is None:
                console.print(f"{method.name}: every trial diverged, so it has no cells", style="yellow", markup=False)
                continue
            for seed in seeds:
                values = {} if chosen is None else self.trials[method.name][chosen]
                recipe = self.comparison.recipe_of(method, values, seed)
                self._run(self.cell(method, seed), recipe, f"{number} of {len(jobs)}")

    def _check_weights(self) -> None:
        """Name a file of weights that is missing, where there is something left to train from it."""
        for method in self.comparison.methods:
            trials, chosen = self.trials[method.name], self.chosen(method)
            left = [
                self._trial_recipe(method, values)
                for number, values in enumerate(trials)
                if not self._is_done(self.trial(method, number))
            ]
            if chosen is not None or not method.tune:
                values = {} if chosen is None else trials[chosen]
                seeds = [seed for seed in self.comparison.seeds if not self._is_done(self.cell(method, seed))]
                left += [self.comparison.recipe_of(method, values, seed) for seed in seeds]
            for recipe in left:
                check_weights_file(recipe.embedder.weights)

    def _run(self, cell: Cell, recipe: Recipe, place: str) -> None:
        """Train and judge a cell, unless its row is known already, of the same settings."""
        self._check_same_settings(cell, recipe)
        if not self._is_done(cell):
            _train_and_judge(cell, recipe, place)
        if cell.cost.exists() and PartialState().is_main_process:
            _tidy(cell)

    def _check_other_settings(self) -> None:
        """Raise RunError where a cell or trial, of any part, is there with other settings than are asked for now."""
        for method in self.comparison.methods:
            trials = self.trials[method.name]
            for number, values in enumerate(trials):
                self._check_same_settings(self.trial(method, number), self._trial_recipe(method, values))
            chosen = self.chosen(method)
            if method.tune and chosen is None:
                continue
            for seed in self.comparison.seeds:
                recipe = self.comparison.recipe_of(method, {} if chosen is None else trials[chosen], seed)
                self._check_same_settings(self.cell(method, seed), recipe)

    def _check_same_settings(self, cell: Cell, recipe: Recipe) -> None:
        row = self.known.get(cell.key)
        if row is None:
            _check_same_run(cell, recipe, tuned=bool(self.trials[cell.method]))
            self._check_same_data(cell)
            return
        found = row["settings"] if cell.trial is None else row.get("run_settings")
        asked = self._own_settings(recipe.content())
        if found != asked:
            found = "settings that it does not tell" if pd.isna(found) else found or "defaults"
            raise RunError(
                f"the row of {cell.name} is of {found}, but the comparison asks for {asked or 'defaults'}: give the "
                "method another name, or leave its rows out"
            )

    def _check_same_data(self, cell: Cell) -> None:
        """Raise RunError where `proxygml evaluate` has judged a cell by another catalog since."""
        if not cell.run.evaluation.exists():
            return
        judged = json.loads(cell.run.evaluation.read_text(encoding="utf-8"))["protocol"]
        # Older evaluations do not tell.
        if judged.get("catalog_fingerprint", self.data_fingerprint) != self.data_fingerprint:
            raise RunError(
                f"{cell.run.evaluation} is of another catalog, {judged['catalog']}: keep a copy if you need it, and "
                f"judge the cell by the comparison's again: proxygml evaluate {quote(str(cell.run.path))} --catalog "
                f"{quote(self.comparison.shared.catalog)}"
            )

    def _own_settings(self, content: Mapping[str, Any]) -> str:
        """What a recipe has of its own, beside what all share."""
        return _described_differences(content, self.comparison.shared.content())

    def jobs(self) -> list["Job"]:
        """What the parts divide: a cell; or a method whole where its trials come first, so that no part waits.

        Without those whose rows are known, which are the same for every part: there is nothing in them to share.
        """
        jobs: list[Job] = []
        seeds = self.comparison.seeds
        for method in self.comparison.methods:
            jobs += [(method, seeds)] if method.tune else [(method, [seed]) for seed in seeds]
        return [(method, seeds) for method, seeds in jobs if not self._is_known(method, seeds)]

    def _is_known(self, method: Method, seeds: Sequence[int]) -> bool:
        """Whether there are rows of a method's trials and of its cells with these seeds."""
        trials = [self.trial(method, number) for number in self._numbers(method)]
        return all(cell.key in self.known for cell in (*trials, *(self.cell(method, seed) for seed in seeds)))

    def _trial_recipe(self, method: Method, values: Values) -> Recipe:
        """The method's recipe, with validation classes where it has none."""
        recipe = self.comparison.recipe_of(method, values, self.comparison.seeds[0])
        return recipe if self.has_validation else replace(recipe, validation_classes=self.comparison.tune_on)

    # Choosing ---------------------------------------------------------------------------------------------------------

    def chosen(self, method: Method) -> int | None:
        """The trial with the best MAP@R on validation classes, the first of several.

        None while trials are left, where all diverged, and for a method that is taken as given.
        """
        trials = [self.trial(method, number) for number in self._numbers(method)]
        scores = [self.score(trial) if self._is_done(trial) else None for trial in trials]
        if not all(map(self._is_done, trials)) or all(score is None for score in scores):
            return None
        return max(range(len(scores)), key=lambda number: scores[number] or 0.0)

    def score(self, trial: Cell) -> float | None:
        """MAP@R on the validation classes at the epoch that a cell would keep; None for a trial that diverged.

        That is the last epoch, unless cells have validation classes too and keep the best.
        """
        if trial.key in self.known:
            known = self.known[trial.key]["val_map_at_r"]
            return None if pd.isna(known) else float(known)
        if trial.diverged.exists():
            return None
        history = pd.read_csv(trial.run.metrics)["val_map_at_r"]
        return float(history.max() if self.has_validation else history.iloc[-1])

    def _is_done(self, cell: Cell) -> bool:
        return cell.key in self.known or cell.finished

    # Gathering --------------------------------------------------------------------------------------------------------

    def gather(self) -> pd.DataFrame:
        """A row for every known or finished cell and trial, by method; what tables and figures are made of.

        Columns: method, family (its name in the comparison's file), varied (keys and values that set it apart from
        its family), seed, trial (its number; empty for a cell), chosen (of a trial), data (the catalog's name),
        protocol (what all share, where it is not a recipe's default), settings (what a cell has of its own, or what was
        drawn for a trial),
        val_map_at_r (of a trial), recall_at_K, map_at_r, r_precision, nmi (of a cell, in 0..1), those of `Cost`,
        val_recall_at_1 (by epoch, where there were validation classes), note (why there are no figures),
        run_settings (of a trial too, all that the run has of its own), data_fingerprint (of the catalog's content).

        Raises:
            RunError: a cell there was trained by another recipe, or rows there would be lost.
        """
        self._check_other_settings()
        self._check_folder()  # again: another part may have left rows since
        rows: list[Row] = []
        for method in self.comparison.methods:
            trials, chosen = self.trials[method.name], self.chosen(method)
            for number, values in enumerate(trials):
                trial = self.trial(method, number)
                if self._is_done(trial):
                    judged = {"settings": described(values) or "as given", "val_map_at_r": self.score(trial)}
                    rows.append(self._row(method, trial) | judged | {"chosen": number == chosen})
            cells = [self.cell(method, seed) for seed in self.comparison.seeds]
            rows += [self._row(method, cell) for cell in cells if self._is_done(cell)]
        return pd.DataFrame(rows, columns=None if rows else list(COLUMNS)).astype({"trial": "Int64"})

    def _row(self, method: Method, cell: Cell) -> Row:
        family = {"family": method.family, "varied": described(method.varied)}
        if cell.key in self.known:
            return dict.fromkeys(COLUMNS) | self.known[cell.key] | family
        own = self._own_settings(cell.run.read_recipe().content())
        row: Row = dict.fromkeys(COLUMNS) | family
        row |= {"method": cell.method, "seed": cell.seed, "trial": cell.trial}
        row |= {"data": self.data, "data_fingerprint": self.data_fingerprint, "protocol": self.protocol}
        row |= {"settings": own, "run_settings": own}
        if cell.diverged.exists():
            return row | {"note": cell.diverged.read_text(encoding="utf-8").partition(";")[0]}
        row |= json.loads(cell.cost.read_text(encoding="utf-8"))
        history = pd.read_csv(cell.run.metrics) if cell.run.metrics.exists() else pd.DataFrame()
        if "val_recall_at_1" in history:
            row["val_recall_at_1"] = " ".join(f"{value:.4f}" for value in history["val_recall_at_1"])
        return row if cell.trial is not None else row | _figures(cell.run.evaluation)


COLUMNS = (
    *("method", "family", "varied", "seed", "trial", "chosen", "data", "protocol", "settings", "val_map_at_r"),
    *(field.name for field in fields(Cost)),
    *("val_recall_at_1", "note", "run_settings", "data_fingerprint"),
)


def _network(recipe: Recipe) -> Network:
    """What a network is built from, but for its weights."""
    return replace(recipe.embedder, weights="none"), recipe.images


def _check_enough_images(recipe: Recipe, images: Catalog, embedding_size: int, num_features: int) -> None:
    """Name a recipe that wants more training classes or images than there are."""
    check_batch_classes(len(images.classes), recipe.batch_size, recipe.images_per_class)
    if recipe.embedding_start == "features":
        check_directions(embedding_size, len(images), num_features)


def _keys(rows: pd.DataFrame) -> list[Key]:
    trials = [None if pd.isna(trial) else int(trial) for trial in rows["trial"]]
    return list(zip(rows["method"], map(int, rows["seed"]), trials, strict=True))


def _portable(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says of its result: not how it is computed, nor in which folders a machine has data and weights."""
    embedder = content["embedder"]
    kept = {key: value for key, value in content.items() if key not in ("catalog", *AT_WILL)}
    return kept | {"embedder": embedder | {"weights": Path(embedder["weights"]).name}}


def _described_differences(content: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What sets a recipe apart from another one, but for its seed, in a line."""
    content, other = _portable(content), _portable(other)
    found = differences(content, other)
    # Arguments that the same loss or miner has no longer stand at their defaults again.
    if content["loss"].get("name") == other["loss"].get("name"):
        gone = differences(other, content).keys() - flattened(content).keys()
        found |= dict.fromkeys(sorted(key for key in gone if key.startswith("loss.")), "default")
    return described({key: value for key, value in found.items() if key != "seed"})


def _figures(path: Path) -> dict[str, float]:
    """The values of evaluation.json, in 0..1."""
    content = json.loads(path.read_text(encoding="utf-8"))
    values = {f"recall_at_{k}": estimate["value"] for k, estimate in content["recall"].items()}
    return values | {name: content[name]["value"] for name in ("map_at_r", "r_precision", "nmi")}


def _train_and_judge(cell: Cell, recipe: Recipe, place: str) -> None:
    """Train a cell, from where it stopped, note what it cost, and judge it unless it is a trial."""
    if PartialState().is_main_process:
        console.print(f"{cell.name} ({place})", style="bold", markup=False, highlight=False)
        if cell.run.recipe.exists():
            recipe.write(cell.run.recipe)  # how it is computed, and where its data lie, may have changed since
    diverged = not cell.cost.exists() and not _train(cell, recipe)
    if cell.trial is None and not diverged:
        evaluate_run(cell.run, report=False)
    PartialState().wait_for_everyone()


def _check_same_run(cell: Cell, recipe: Recipe, tuned: bool) -> None:
    if not cell.run.recipe.exists():
        return
    # Read as a recipe, so that a key that a newer version has stands at its default in an older run.
    there, asked = (_portable(one.content()) for one in (cell.run.read_recipe(), recipe))
    found, wanted = differences(there, asked), differences(asked, there)
    mend = "give the method another name, or the comparison another --run"
    if tuned and cell.trial is None:  # its trials agree with what is asked for, or they would have been named before it
        mend = "its trials have chosen anew: take the method's seed folders, and their rows in cells.csv, away to "
        mend += "train it so, or ask for as many trials as before"
    if found or wanted:
        raise RunError(
            f"{cell.run.path} was trained with {described(found) or 'defaults'}, but the comparison asks for "
            f"{described(wanted) or 'defaults'}: {mend}"
        )


def _train(cell: Cell, recipe: Recipe) -> bool:
    """Train a cell and note what it cost; whether it gave numbers."""
    _forget_peak_memory()
    started, state = cell.run.recipe.exists(), PartialState()
    state.wait_for_everyone()  # before one of several processes writes what another looks for
    try:
        if started:
            resume(cell.run)
        else:
            fit(recipe, cell.run)
    except DivergedError as error:
        # Too bold a setting says something about its method, and nothing against the cells that follow.
        if state.is_main_process:
            console.print(str(error), style="yellow", markup=False)
            _write(cell.diverged, str(error))
        return False
    if state.is_main_process:
        _write(cell.cost, json.dumps(asdict(_cost(cell.run)), indent=2) + "\n")
    return True


def _tidy(cell: Cell) -> None:
    """Remove what a finished cell needs no longer, and hundreds of which fill a disk.

    There is nothing left to go on from, and a trial's figures are all it is for.
    """
    shutil.rmtree(cell.run.checkpoint.parent, ignore_errors=True)
    if cell.trial is not None:
        cell.run.model.unlink(missing_ok=True)


def _cost(run: RunFolder) -> Cost:
    on_gpu = torch.cuda.is_available()
    epochs = pd.read_csv(run.metrics)["seconds"] if run.metrics.exists() else [0.0]
    learned: dict[str, torch.Tensor] = {}
    if run.checkpoint.exists():
        learned = torch.load(run.checkpoint, map_location="cpu", weights_only=True, mmap=True)["criterion"]
    return Cost(
        seconds_per_epoch=round(median(epochs), 3),
        peak_memory_mib=_peak_memory(),
        gpu_memory_mib=round(torch.cuda.max_memory_allocated() / MIB, 1) if on_gpu else None,
        device=torch.cuda.get_device_name() if on_gpu else "CPU",
        loss_parameters=sum(tensor.numel() for tensor in learned.values()),
    )


def _forget_peak_memory() -> None:
    """Start measuring anew, where the system can: on Linux, and on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> float | None:
    """MiB of main memory that this process has held at its peak; None where the system does not say (not Linux)."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return round(int(found[1]) / 1024, 1) if found else None
    return None


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
