"""What an audit has found, in sentences: how many labels are wrong, how sure that is, and what could not be judged."""

import math

import numpy as np

from proxygml.auditing.evidence import Evidence
from proxygml.auditing.table import LIKELY
from proxygml.data.catalog import Catalog
from proxygml.errors import counted

MANY = 0.4
"""Share of wrong labels from which on the suggestions themselves are in doubt."""

MOST = 0.7
"""Share from which on the features are in doubt too."""

FEW = 200
"""Images below which a share can hardly be estimated."""


def summary(evidence: Evidence, classes: list[str], item: str) -> tuple[str, ...]:
    """The findings, one sentence or two each.

    Args:
        evidence: on all labels.
        classes: the C classes.
        item: image or vector.
    """
    margin = evidence.margin
    judged = int(np.count_nonzero(~np.isnan(margin)))
    if len(classes) == 1:
        return (
            f"All {counted(len(margin), item)} have the label {classes[0]}: with one class, none can be contradicted.",
        )
    sentences = [*_wrong(evidence, judged, item)]
    if alone := len(margin) - judged:
        verb = "is the only one" if alone == 1 else "are the only ones"
        sentences.append(f"{counted(alone, item)} {verb} of the class and cannot be judged.")
    if 0 < judged < FEW:
        sentences.append(
            f"With {counted(judged, item)}, these figures are rough: look at the top of the list in any case."
        )
    return tuple(sentences)


def copies_summary(catalog: Catalog, evidence: Evidence) -> tuple[str, ...]:
    """A sentence each on near-duplicates under two labels and in two splits, where there are some."""
    splits = catalog.table["split"].to_numpy()
    labels = sum(len(set(evidence.labels[group])) > 1 for group in evidence.groups)
    across = sum(len(set(splits[group])) > 1 for group in evidence.groups)
    sentences = []
    if labels:
        sentences.append(f"{counted(labels, 'group')} of near-duplicates {_have(labels)} more than one label.")
    if across:
        words = "in more than one split: figures of the test split are too good."
        sentences.append(f"{counted(across, 'group')} of near-duplicates {'lies' if across == 1 else 'lie'} {words}")
    return tuple(sentences)


def classes_summary(outliers: int, alike: int, mixed: int, item: str) -> tuple[str, ...]:
    """A sentence each on images of no class, and on classes that are probably one or two, where there are some.

    Args:
        outliers: images that are like those of no class.
        alike: pairs of classes that are probably one.
        mixed: classes that are probably two.
        item: image or vector.
    """
    sentences = []
    if outliers:
        verb = "is" if outliers == 1 else "are"
        sentences.append(f"{counted(outliers, item)} {verb} unlike all classes and may belong to none.")
    if alike:
        verb = "is" if alike == 1 else "are"
        sentences.append(f"{counted(alike, 'pair')} of classes {verb} hardly told apart, and may be one each.")
    if mixed:
        verb = "falls" if mixed == 1 else "fall"
        sentences.append(f"{counted(mixed, 'class')} {verb} into two parts that are as unlike as two classes.")
    return tuple(sentences)


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _wrong(evidence: Evidence, judged: int, item: str) -> list[str]:
    noise = evidence.noise
    if not judged:
        return [f"No label could be judged: every class has one {item}."]
    likely = int(np.count_nonzero(evidence.probability >= LIKELY))
    most = math.ceil(noise.high * judged)
    if not likely:
        return [
            f"No wrong label was found among {counted(judged, item)}; with 95% confidence, at most {most:,} "
            f"({noise.high:.1%}) are wrong."
        ]
    wrong = round(noise.share * judged)
    if not wrong:
        return [
            f"Probably no label is wrong among {counted(judged, item)}; with 95% confidence, at most {most:,} "
            f"({noise.high:.1%}) are.",
            f"Look at {'the first one, which stands' if likely == 1 else f'the first {likely:,}, which stand'} out.",
        ]
    found = [
        f"About {wrong:,} of {counted(judged, 'label')} {'is' if wrong == 1 else 'are'} wrong: {noise.share:.1%}, "
        f"with 95% confidence {noise.low:.1%} to {noise.high:.1%}.",
        f"{counted(likely, 'label')} {'is' if likely == 1 else 'are'} more likely wrong than right; "
        f"{'it comes' if likely == 1 else 'they come'} first.",
    ]
    if likely > most:
        found.append(f"Those are more than that share, in which a group of near-duplicates counts as one {item}.")
    if noise.share >= MOST:
        found.append("Either that is so, or the features do not tell these classes apart: look at some of them first.")
    elif noise.share >= MANY:
        found.append("With so many wrong labels, suggestions are less sure: correct the first ones, then audit again.")
    return found
