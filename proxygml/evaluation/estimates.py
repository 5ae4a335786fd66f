"""The figures of an evaluation, each with its 95% interval, and how they are printed and kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proxygml.errors import counted
from proxygml.evaluation.retrieval import QueryScores

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval (bootstrap over classes), all in 0..1."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The three numbers under their names."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def in_points(self) -> str:
        """A difference in percentage points and its interval, such as `+1.7 (1.3 to 2.1)`."""
        return f"{100 * self.value:+.1f} ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Evaluation:
    """The figures of one set of embeddings, and what they were computed from."""

    recall: dict[int, Estimate]
    map_at_r: Estimate
    r_precision: Estimate
    nmi: Estimate | None
    num_queries: int  # queries that were scored
    num_gallery: int
    num_classes: int  # classes among query and gallery images
    queries_without_positive: int  # left out of every figure
    mean_average_precision: Estimate | None = None  # mAP, over the whole ranking
    rules: Mapping[str, int] = field(default_factory=dict)  # what sequences, cameras, junk and distractors did
    scores: QueryScores | None = field(default=None, repr=False, compare=False)
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)  # taken by each part

    def as_dict(self) -> dict[str, Any]:
        """The content of evaluation.json: plain dictionaries and numbers, without single queries and times."""
        content = {
            "recall": {str(k): estimate.as_dict() for k, estimate in self.recall.items()},
            "map_at_r": self.map_at_r.as_dict(),
            "r_precision": self.r_precision.as_dict(),
            "nmi": None if self.nmi is None else self.nmi.as_dict(),
            "num_queries": self.num_queries,
            "num_gallery": self.num_gallery,
            "num_classes": self.num_classes,
            "queries_without_positive": self.queries_without_positive,
        }
        if self.mean_average_precision is not None:
            content["mean_average_precision"] = self.mean_average_precision.as_dict()
        return content | {"rules": dict(self.rules)} if self.rules else content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Evaluation:
        """The inverse of `as_dict`; unknown keys are ignored."""
        full = content.get("mean_average_precision")
        return cls(
            recall={int(k): Estimate(**estimate) for k, estimate in content["recall"].items()},
            map_at_r=Estimate(**content["map_at_r"]),
            r_precision=Estimate(**content["r_precision"]),
            nmi=None if content["nmi"] is None else Estimate(**content["nmi"]),
            num_queries=content["num_queries"],
            num_gallery=content["num_gallery"],
            num_classes=content["num_classes"],
            queries_without_positive=content["queries_without_positive"],
            mean_average_precision=None if full is None else Estimate(**full),
            rules=content.get("rules", {}),
        )

    def figures(self) -> dict[str, Estimate]:
        """Every estimate under the name that people read, Recall@K first."""
        named = {f"Recall@{k}": estimate for k, estimate in self.recall.items()}
        named |= {"MAP@R": self.map_at_r, "R-precision": self.r_precision}
        if self.mean_average_precision is not None:
            named["mAP"] = self.mean_average_precision
        return named if self.nmi is None else named | {"NMI": self.nmi}

    def rule_sentences(self) -> list[str]:
        """What sequences, cameras, junk and distractors did, one sentence each, without a full stop."""
        counts, sentences = self.rules, []
        if "excluded_matches_of_same_sequence" in counts:
            sentences.append(
                "An image may not answer for its own sequence. Matches that do not count: "
                f"{counts['excluded_matches_of_same_sequence']:,}; queries without any other match, which count as not "
                f"found: {counts['queries_with_matches_in_own_sequence_only']:,}"
            )
        if "excluded_matches_of_same_camera" in counts:
            sentences.append(
                "An image may not answer for one of its class and camera. Matches that do not count: "
                f"{counts['excluded_matches_of_same_camera']:,}"
            )
        if "junk_images" in counts:
            sentences.append(f"Junk images, which are left out: {counts['junk_images']:,}")
        if "distractor_images" in counts:
            sentences.append(f"Distractors, which are searched and always wrong: {counts['distractor_images']:,}")
        return sentences

    def table(self, before: Evaluation | None = None, gain: Mapping[str, Estimate] | None = None) -> Table:
        """A table for the console, in per cent; the time of each part stands under it.

        Args:
            before: figures to show beside these.
            gain: by how much these are better than those, see evaluation/gains.py.
        """
        from rich.table import Table  # noqa: PLC0415

        queries, classes = counted(self.num_queries, "query"), counted(self.num_classes, "class")
        caption = f"{queries}, gallery of {self.num_gallery:,}, {classes}"
        if self.queries_without_positive:
            caption += f"\nqueries without a positive, left out: {self.queries_without_positive:,}"
        caption += "".join(f"\n{sentence}" for sentence in self.rule_sentences())
        if self.seconds:
            caption += "".join(f"\n{part}: {seconds:.1f} s" for part, seconds in self.seconds.items())
        table = Table(caption=caption)
        table.add_column("")
        earlier = {} if before is None else before.figures()
        for title in ("per cent", "95% interval", *(["before training"] if earlier else [])):
            table.add_column(title, justify="right")
        if gain:
            table.add_column("gain", justify="right", no_wrap=True)  # on 80 characters, a title gives way
        for name, estimate in self.figures().items():
            interval = f"{100 * estimate.low:.1f} - {100 * estimate.high:.1f}"
            compared = [f"{100 * earlier[name].value:.1f}"] if name in earlier else []
            if gain and name in gain:
                compared.append(gain[name].in_points())
            table.add_row(name, f"{100 * estimate.value:.1f}", interval, *compared)
        return table
