"""From a download to a catalog: unpack, read, compare with what was published, open every image, write.

datasets/ has one file for each data set, which knows its layout on disk. `prepare` is one thing, a list of steps in
their order; its arguments, described in full, make it longer than a screen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from proxygml.arguments import check_arguments
from proxygml.console import note, warn
from proxygml.data.archives.unpack import ARCHIVE_SUFFIXES, is_archive, unpacked
from proxygml.data.catalog.catalog import SUFFIXES, Catalog, check_splits, check_suffix, split_classes
from proxygml.data.catalog.class_names import check_class_names
from proxygml.data.datasets import Dataset, find_dataset
from proxygml.data.datasets.layout import check_root
from proxygml.data.images.bounds import MAX_PIXELS
from proxygml.data.images.files import ListedFolder
from proxygml.data.images.folders import ImageFolders
from proxygml.data.images.image_list import file_stamps
from proxygml.data.images.inspection import inspect_all
from proxygml.data.preparing.findings import Finding, findings_of
from proxygml.data.preparing.inspection_parts import inspect_on_ray, remove_inspections
from proxygml.data.preparing.pack import pack_images
from proxygml.data.preparing.prepare_vectors import prepare_vectors
from proxygml.data.preparing.report import OnBad, check_free, print_counts, print_findings, publish
from proxygml.data.preparing.resize import Size, copy_smaller
from proxygml.errors import DatasetError, check_whole, counted
from proxygml.files import PathLike, local_path, remove_folder
from proxygml.remote import local_file
from proxygml.urls import Place, Url, as_place


@check_arguments
def prepare(
    dataset: str | Dataset,
    root: PathLike | None,
    out: PathLike,
    *,
    options: Mapping[str, object] | None = None,
    on_bad: OnBad = "fail",
    force: bool = False,
    workers: int | None = None,
    resize: int | None = None,
    pack: bool = False,
    ray: str | None = None,
) -> Catalog:
    """Turn a download, or images of one's own, into a checked catalog.

    Archives are unpacked into a folder beside `out`, named like it without its suffix, and stay there; a folder that
    was unpacked from the same archives is used as it is. Where `force` replaces a catalog, images that are unpacked,
    made or copied for the new one go into another folder (NAME.2, ...), and the old folder is deleted last: a kill at
    any moment leaves the old catalog or the new one, with all of its images.

    Every image is opened once. Files that are missing, empty, truncated or no images, files whose box does not fit, and
    duplicates are reported in one table. In a benchmark (a data set with published counts) duplicates are reported and
    kept, and a box that reaches beyond its image is cut to the image, because the published figures were measured so.

    Args:
        dataset: The name of a data set, such as "cub200", "folder" or "glyphs" (see `proxygml prepare --help`).
        root: The official archive, the folder it unpacks to, or the folder or table of your own images; None for
            "glyphs", whose images are made here. For "vectors", the Parquet file or the table of your own vectors.
            An archive, and all of your own, may be URLs.
        out: The catalog to write, a .parquet or a .csv file.
        options: The data set's own options, such as {"test_classes": "half"} for "folder" (those that
            `proxygml prepare DATASET --help` lists).
        on_bad: What bad images lead to: `fail` writes nothing, `drop` leaves them out and lists them in
            OUT.dropped.csv. Of duplicates in the same class the first stays; of duplicates in different
            classes none stays, because nobody knows which class is right.
        force: Replace the result of an earlier run at `out`.
        workers: How many images are opened at a time; by default as many as there are processors.
        resize: Store a smaller copy of each image, this many pixels on the shorter side, in a folder beside `out`, and
            list the copies in the catalog; see `resize.copy_smaller`.
        pack: Put the images, or their smaller copies, together in shards in a folder beside `out`, for training from a
            store of objects, and list the packed images in the catalog; see `pack.pack_images`.
        ray: Open the images in many processes: the address of a Ray cluster; "auto" takes the Ray that runs on this
            machine, or starts one. The images must be where all machines find them under the same paths.

    Returns:
        The catalog as it was written.

    Raises:
        DatasetError: There is no such data set or option, the download is incomplete or of another layout, or images
            are bad and `on_bad` is `fail`; `resize` is impossible, or the copies would lie among your own images.
        CatalogError: The catalog cannot be used (see `catalog.check_splits`).
        OverwriteError: Something is at `out` already, and `force` was not given.
    """
    place, out = None if root is None else as_place(root, "root"), local_path(out, "out")
    dataset = (find_dataset(dataset) if isinstance(dataset, str) else dataset).with_options(options or {})
    if dataset.has_vectors:
        if resize is not None:
            raise DatasetError("resize is for images, and vectors have none: leave it out")
        if pack or ray is not None:
            raise DatasetError("pack and ray are for images, and vectors have none: leave them out")
        return prepare_vectors(dataset, place, out, on_bad=on_bad, force=force)
    check_suffix(out)
    dropped_list = out.with_suffix(".dropped.csv")
    check_free(out, dropped_list, force)
    images, copies = ImageFolders(out.with_suffix("")), ImageFolders(out.with_suffix(f".{resize}px"))
    if resize is not None:
        _check_resize(resize, copies.base, place if dataset.strays and isinstance(place, Path) else None)
    catalog = _read(dataset, place, images.base, force, made_anew=force or not out.exists())
    _compare_counts(catalog, dataset)
    if dataset.hidden is not None and (left_out := dataset.hidden(catalog.folder)):
        note(f"{catalog.folder}: {left_out}")
    strays = _strays(dataset, catalog, {out, dropped_list, out.with_suffix("")})
    catalog = _without_listing(catalog)
    split_classes(catalog)  # a class in two splits is named before the images are opened, which may take hours
    paths, kept = catalog.paths, resize is not None or pack
    found = inspect_all(paths, workers, kept) if ray is None else inspect_on_ray(paths, out, ray, workers)
    in_rows = [found[path] for path in paths]
    findings, catalog = findings_of(catalog, in_rows, benchmark=dataset.published is not None)
    findings = strays + findings
    print_findings(findings, on_bad)
    if bad := [finding for finding in findings if finding.bad]:
        catalog = _drop(catalog, bad, len(catalog) + len(strays), on_bad)
        _compare_counts(catalog, dataset)
    for warning in (*check_splits(catalog), *check_class_names(catalog)):
        warn(warning)
    superseded = images.superseded(catalog.folder)
    if resize is not None:
        sizes = {path: Size(inspection.height, inspection.width) for path, inspection in found.items()}
        catalog = copy_smaller(catalog, sizes, copies.started(_origin(catalog)), resize, workers)
        superseded += copies.superseded(catalog.folder)
    if pack:
        packs = ImageFolders(out.with_suffix(".packed"))
        catalog = pack_images(catalog, packs.started(_origin(catalog)), workers)
        superseded += packs.superseded(catalog.folder)
    publish(catalog, out, bad, dropped_list, force)
    _remove(superseded, out)
    remove_inspections(out)
    print_counts(catalog, out)
    return Catalog.read(out)


def _origin(catalog: Catalog) -> str:
    """What smaller copies are made from: a digest of the images' paths, sizes and times."""
    digest = blake2b(digest_size=16)
    stamps = file_stamps([str(path) for path in catalog.paths])
    for path, stamp in zip(catalog.table["path"], stamps, strict=True):
        digest.update(f"{path}\0{stamp}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _remove(superseded: Sequence[Path], out: Path) -> None:
    """Delete folders that the catalog does not use any more, unless one of the same name in the other format may."""
    if not any(out.with_suffix(suffix).exists() for suffix in SUFFIXES if suffix != out.suffix.lower()):
        for folder in superseded:
            remove_folder(folder)


def _check_resize(resize: int, copies: Path, images: Path | None) -> None:
    check_whole("resize", resize, 1, MAX_PIXELS, DatasetError)
    if images is not None and copies.resolve().is_relative_to(images.expanduser().resolve()):
        raise DatasetError(
            f"the copies would go to {copies}, among the images in {images}, where the next run would take them for "
            "a class: choose an --out in another folder"
        )


def _read(dataset: Dataset, root: Place | None, beside: Path, force: bool, made_anew: bool) -> Catalog:
    if dataset.makes_images:
        return _make(dataset, beside, made_anew)  # without a catalog, a command that was killed has left the images
    if root is None:
        raise DatasetError(f"{dataset.name} needs --root: where its images are")
    root = check_root(root, dataset.name)
    if isinstance(root, Url) and is_archive(root):
        root = local_file(root, DatasetError)
    if isinstance(root, Path) and (root.is_dir() or is_archive(root)):
        root = unpacked(root, beside, dataset.archives, force)
    if isinstance(root, Url) and not dataset.reads_urls:
        raise DatasetError(
            f"{root} is a URL, which {dataset.name} reads only of an archive ({', '.join(ARCHIVE_SUFFIXES)}): copy the "
            "folder to this machine"
        )
    if isinstance(root, Url) and dataset.strays is not None:
        root = ListedFolder.of(root)
    catalog: Catalog = dataset.read(root)
    return catalog


def _without_listing(catalog: Catalog) -> Catalog:
    """The catalog, whose folder at a URL no longer holds what was listed there."""
    if not isinstance(catalog.folder, Url):
        return catalog
    return replace(catalog, folder=Url(str(catalog.folder)))


def _make(dataset: Dataset, beside: Path, made_anew: bool) -> Catalog:
    folders = ImageFolders(beside)
    folders.check_free("made", made_anew)
    with folders.new(dataset.name) as (folder, target):
        made = dataset.read(folder)
    return Catalog(made.table, target)


def _compare_counts(catalog: Catalog, dataset: Dataset) -> None:
    """Warn of every difference between the images found and those published."""
    found = catalog.counts
    for part, published in (dataset.published or {}).items():
        images, classes = found.get(part, (0, 0))
        if (images, classes) != published:
            warn(
                f"{dataset.name} {part} has {counted(images, 'image')} of {counted(classes, 'class')}, but "
                f"{published.images:,} of {published.classes:,} were published: its "
                "figures cannot be compared with published ones"
            )


def _strays(dataset: Dataset, catalog: Catalog, ours: set[Path]) -> list[Finding]:
    """The files that the reader left out, without those that an earlier run wrote into the folder."""
    if dataset.strays is None:
        return []
    written = {path.resolve() for path in ours}
    return [
        Finding(path, "out of place", problem)
        for path, problem in dataset.strays(catalog.folder)
        if isinstance(catalog.folder, Url) or (catalog.folder / path).resolve() not in written
    ]


def _drop(catalog: Catalog, bad: Sequence[Finding], files: int, on_bad: OnBad) -> Catalog:
    """The catalog without its bad rows. DatasetError where `on_bad` is `fail`, or no row is left."""
    if on_bad == "fail":
        raise DatasetError(
            f"{_summary(bad, files)}. No catalog was written: repair or replace them, "
            "or leave them out with --on_bad drop"
        )
    rows = {finding.row for finding in bad if finding.row is not None}
    if len(rows) == len(catalog):
        raise DatasetError(f"no image is left: {_summary(bad, files)}. No catalog was written")
    return catalog.with_table(catalog.table.drop(index=list(rows)))


def _summary(bad: Sequence[Finding], files: int) -> str:
    """Such as `2 of 10 files are missing (a.jpg, b.jpg); 1 of 10 files is unreadable (c.jpg)`."""
    parts = []
    for kind in dict.fromkeys(finding.kind for finding in bad):
        paths = [finding.path for finding in bad if finding.kind == kind]
        names = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
        parts.append(
            f"{len(paths):,} of {counted(files, 'file')} {'is' if len(paths) == 1 else 'are'} {kind} ({names})"
        )
    return "; ".join(parts)
