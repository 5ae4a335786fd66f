"""`python -m benchmarks.cost_model`: what each part of a step costs on one thread, and a model of it.

The parts are timed at some shapes, a few coefficients are fitted to each part, and the sum of the parts is compared
with whole steps at shapes that were not fitted. Times are CPU seconds of one thread, so that other work on the machine
counts little. The last tables are computed, not measured: many classes on many GPUs, from docs/performance.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks.cases import Case, batch
from benchmarks.measure import console, machine, table
from benchmarks.process_group import ProcessGroup
from benchmarks.sharded import make_step
from proxygml import ProxyGMLLoss
from proxygml.loss import graph
from proxygml.loss.sample_loss import sub_graph_loss

LARGEST_KEPT = 32 * 2**20  # bytes; glibc's largest threshold
FITTED = [
    Case("", M, D, C, N, r, 0.0, 20.0 / N)
    for M, D, C, N, r in [
        (32, 128, 10_000, 1, 0.05),
        (32, 128, 100_000, 1, 0.05),
        (32, 128, 400_000, 1, 0.05),
        (128, 128, 100_000, 1, 0.05),
        (32, 512, 10_000, 1, 0.05),
        (32, 512, 100_000, 1, 0.05),
        (128, 512, 20_000, 1, 0.05),
        (32, 128, 5_000, 8, 0.05),
        (64, 512, 2_000, 12, 0.05),
        (32, 128, 1_000, 4, 0.05),
        (32, 128, 500, 1, 0.05),
        (256, 128, 20_000, 1, 0.05),
        (128, 256, 30_000, 1, 0.3),
        (32, 256, 50_000, 1, 0.05),
        (64, 256, 100_000, 1, 0.1),
        (32, 512, 40_000, 1, 0.01),
        (64, 512, 60_000, 1, 0.02),
        (128, 256, 150_000, 1, 0.05),
    ]
]
CHECKED = [
    Case("", M, D, C, N, r, 0.0, 20.0 / N)
    for M, D, C, N, r in [
        (32, 512, 11_318, 1, 0.05),
        (64, 128, 50_000, 1, 0.05),
        (64, 256, 200_000, 1, 0.05),
        (48, 256, 30_000, 1, 0.08),
        (96, 256, 8_000, 6, 0.05),
        (64, 384, 3_000, 10, 0.05),
    ]
]
REGULARISED = [
    Case("", 32, D, C, N, 0.05, 0.3, 20.0 / N)
    for D, C, N in [(128, 2_000, 1), (512, 2_000, 1), (128, 6_000, 1), (512, 500, 8), (128, 1_000, 4)]
]
REGULARISED_CHECKED = [Case("", 32, 256, 4_000, 1, 0.05, 0.3, 20.0), Case("", 64, 384, 600, 6, 0.05, 0.3, 3.0)]


def work_of(case: Case) -> dict[str, dict[str, float]]:
    """How much of each kind of work the parts of a step do, on a CPU."""
    proxies, numbers = case.C * case.N, case.C * case.N * case.D
    kept = graph.neighbor_count(case.C, case.N, case.r)
    gathers = 8 * kept <= proxies
    products = 1 if gathers else 2
    # The C library gives larger tensors back to the system, which then provides each page anew.
    fresh = numbers * (4 * numbers > LARGEST_KEPT)
    fresh_similarities = case.M * proxies * (4 * case.M * proxies > LARGEST_KEPT)
    return {
        "similarity": {
            "multiplication": case.M * numbers,
            "number of a proxy": numbers,
            "similarity": case.M * proxies,
            "number in a new page": fresh_similarities,
            "step": 1,
        },
        "selection": {"similarity": case.M * proxies, "edge": case.M * kept, "step": 1},
        "scores and softmax": {"edge": case.M * kept, "class": case.M * case.C * (case.N > 1), "step": 1},
        "backward": {
            "multiplication": products * case.M * numbers,
            "number of a proxy": numbers,
            "similarity": case.M * proxies,
            "gathered number": gathers * case.M * kept * case.D,
            "number in a new page": fresh + fresh_similarities,
            "step": 1,
        },
        "optimiser": {"number of a proxy": numbers, "step": 1},
        "regulariser": {
            "multiplication": 3 * numbers * case.C if case.weight else 0,
            "logit": proxies * case.C if case.weight else 0,
            "number of a proxy": numbers if case.weight else 0,
            "step": float(case.weight > 0),
        },
    }


# Measuring ------------------------------------------------------------------------------------------------------------


@dataclass
class Parts:
    """The parts of a step at one shape, each to be timed by itself."""

    case: Case

    def __post_init__(self) -> None:
        case = self.case
        torch.manual_seed(0)
        self.loss = ProxyGMLLoss(case.C, case.D, case.N, case.r, case.weight, case.scale)
        self.embeddings, self.labels = batch(case, torch.device("cpu"))
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=0.03, eps=0.01, fused=True)

    def times(self) -> dict[str, float]:
        """CPU seconds of each part (scores and softmax with the selection), and of the whole step as loops run it."""
        loss, proxies = self.loss, self.loss.proxies.detach()
        found: dict[str, float] = {}
        with torch.no_grad():
            terms, samples = loss._terms(), graph.unit_samples(self.embeddings, proxies.dtype)[0]
            similarity = graph.cosine_similarity(samples, proxies)[0]
            found["similarity"] = timed(lambda: graph.cosine_similarity(samples, proxies))
            found["selection"] = timed(lambda: graph.select_neighbors(similarity, self.labels, terms))
            found["scores and softmax"] = timed(lambda: sub_graph_loss(similarity, self.labels, terms, None))
        start = time.thread_time()
        self.optimizer.zero_grad()
        value = loss(self.embeddings, self.labels)
        forward = time.thread_time()
        value.backward()
        backward = time.thread_time()
        self.optimizer.step()
        end = time.thread_time()
        return found | {"backward": backward - forward, "optimiser": end - backward, "whole": end - start}


def timed(work: Callable[[], object]) -> float:
    """CPU seconds that the work takes this thread."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def measured(case: Case, seconds: float) -> dict[str, float]:
    """The least CPU seconds of each part over some rounds: what interrupts a part only adds to it."""
    parts = Parts(case)
    rounds: list[dict[str, float]] = []
    parts.times()
    start = time.perf_counter()
    while len(rounds) < 5 or time.perf_counter() - start < seconds:
        rounds.append(parts.times())
    least = {name: min(each[name] for each in rounds) for name in rounds[0]}
    least["scores and softmax"] = max(0.0, least["scores and softmax"] - least["selection"])
    return least


def with_regulariser(case: Case, seconds: float) -> tuple[Case, dict[str, float]]:
    """The whole step, and what it takes longer than without the regulariser."""
    without, whole = (measured(replace(case, weight=weight), seconds)["whole"] for weight in (0.0, case.weight))
    return case, {"regulariser": whole - without, "whole": whole}


# The model ------------------------------------------------------------------------------------------------------------

Coefficients = Mapping[str, Mapping[str, float]]


def fit(observations: list[tuple[Case, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Seconds for each unit of work of each part, none negative, by least squares of the relative errors."""
    coefficients: dict[str, dict[str, float]] = {}
    for part in work_of(observations[0][0]):
        seen = [(work_of(case)[part], times[part]) for case, times in observations if times.get(part, 0) > 0]
        kinds = list(seen[0][0])
        rows = np.array([[work[kind] / seconds for kind in kinds] for work, seconds in seen])
        scale = rows.max(axis=0)
        scale[scale == 0] = 1
        values, _ = nnls(rows / scale, np.ones(len(rows)))
        coefficients[part] = dict(zip(kinds, values / scale, strict=True))
    return coefficients


def predicted(case: Case, coefficients: Coefficients) -> float:
    """Seconds of a whole step."""
    work = work_of(case)
    return sum(coefficients[part][kind] * amount for part in work for kind, amount in work[part].items())


def show_parts(observations: list[tuple[Case, dict[str, float]]]) -> None:
    """Print what each part took."""
    names = ["similarity", "selection", "scores and softmax", "backward", "optimiser", "whole"]
    result = table("Parts of a step, CPU milliseconds of one thread", ["", *names])
    for case, times in observations:
        result.add_row(case.symbols, *(f"{1e3 * times[name]:.2f}" for name in names))
    console.print(result)


def show_regulariser(observations: list[tuple[Case, dict[str, float]]]) -> None:
    """Print what the regulariser added."""
    result = table("The regulariser, CPU milliseconds of one thread", ["", "regulariser", "whole"])
    for case, times in observations:
        result.add_row(case.symbols, *(f"{1e3 * times[name]:.2f}" for name in ("regulariser", "whole")))
    console.print(result)


def show_model(coefficients: Coefficients) -> None:
    """Print the coefficients."""
    result = table("The model: nanoseconds for each unit of work (microseconds a step)", ["part", "unit", "cost"])
    for part, kinds in coefficients.items():
        for kind, value in kinds.items():
            result.add_row(part, kind, f"{1e6 * value:.0f} us" if kind == "step" else f"{1e9 * value:.4f} ns")
    console.print(result)


def show_check(observations: list[tuple[Case, dict[str, float]]], coefficients: Coefficients) -> None:
    """Print whole steps beside the model at shapes that it was not fitted to."""
    result = table("Whole steps at shapes that were not fitted", ["", "measured", "model", "model / measured"])
    for case, times in observations:
        model = predicted(case, coefficients)
        figures = f"{1e3 * times['whole']:.2f} ms", f"{1e3 * model:.2f} ms", f"{model / times['whole']:.2f}"
        result.add_row(case.symbols, *figures)
    console.print(result)


# Exchanges ------------------------------------------------------------------------------------------------------------

EXCHANGED = [Case("", M, D, 512, 1, 0.05, 0.0, 20.0) for M, D in [(32, 128), (256, 512), (128, 256)]]
"""So few classes that the loss takes little of a step; the last one is not fitted."""


def least_step(case: Case, processes: int, folder: Path) -> float:
    """The least seconds of a step of the sharded loss, of 60."""
    folder.mkdir()
    group = ProcessGroup(processes, make_step, folder, case, False)
    taken = []
    for _ in range(60):
        start = time.perf_counter()
        group.work()
        taken.append(time.perf_counter() - start)
    group.stop()
    return min(taken)


def show_exchanges() -> None:
    """Print what the exchanges add to a step, and a line through it: a fixed time and one for each number."""
    columns = [
        "processes, gloo",
        *(f"M {case.M}, D {case.D}" for case in EXCHANGED),
        "fixed",
        "a number",
        "last / line",
    ]
    result = table("Exchanges of a step on one machine, milliseconds", columns)
    numbers = np.array([2 * case.M * case.D + 1100 * case.M for case in EXCHANGED], dtype=float)
    with tempfile.TemporaryDirectory() as folder:
        alone = [least_step(case, 1, Path(folder) / f"1-{number}") for number, case in enumerate(EXCHANGED)]
        for processes in (2, 4):
            steps = [
                least_step(case, processes, Path(folder) / f"{processes}-{number}")
                for number, case in enumerate(EXCHANGED)
            ]
            added = np.maximum(np.subtract(steps, alone), 1e-9)
            rows = np.stack([np.ones_like(numbers), numbers], axis=1) / added[:, None]
            (fixed, each), _ = nnls(rows[:-1], np.ones(len(rows) - 1))
            line = added[-1] / (fixed + each * numbers[-1])
            figures = (f"{1e3 * seconds:.2f}" for seconds in [*added, fixed])
            result.add_row(str(processes), *figures, f"{1e9 * each:.2f} ns", f"{line:.2f}")
    console.print(result)


# Computed, not measured -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """A GPU and its network. What is published, and what the table of the H200 in docs/performance.md says of it."""

    bandwidth: float  # bytes a second that a copy reaches, of its memory
    multiply: float = 33.3e12  # operations a second of the float32 products, without TF32
    similarity: float = 12.5e-12  # seconds for each similarity that `topk` looks at
    edge: float = 82e-12  # seconds for each kept edge
    launch: float = 243e-6  # seconds of small kernels, as a CUDA graph
    host: float = 6e-3  # seconds in which the host launches a sharded step without a CUDA graph
    memory: float = 80e9  # bytes
    link: float = 450e9  # bytes a second to the others of a machine of 8, each way (NVLink 4)
    network: float = 50e9  # bytes a second to other machines (InfiniBand NDR, 400 Gbit/s for each GPU)
    exchange: float = 30e-6  # seconds of latency of an exchange: an assumption
    exchanges: int = 12  # in a step


COPY = 0.77  # of the published bandwidth: 1.54 GB in 414 us on an H200
H200 = Device(COPY * 4.8e12)
H100 = Device(COPY * 3.35e12, similarity=12.5e-12 * 4.8 / 3.35)
H200_MEASURED = [  # microseconds as a CUDA graph, from docs/performance.md, and what was fitted to them
    (Case("", 32, 512, 11_318, 1, 0.05, 0.0, 20.0), 309, "small kernels"),
    (Case("", 32, 512, 11_318, 1, 0.05, 0.3, 20.0), 12_058, "nothing"),
    (Case("", 64, 128, 1_000_000, 1, 0.001, 0.0, 20.0), 3_360, "nothing"),
    (Case("", 64, 128, 1_000_000, 1, 0.05, 0.0, 20.0), 3_619, "edges"),
]


def gpu_seconds(case: Case, device: Device, processes: int = 1) -> float:
    """Seconds that the kernels of forward and backward take a GPU that holds one part of the classes."""
    proxies = case.C * case.N / processes
    edges = case.M * min(graph.neighbor_count(case.C, case.N, case.r), proxies)
    operations = 6 * case.M * proxies * case.D
    # Lengths and the part along the proxies; scaling the similarities and spreading the slopes.
    moved = 4 * (4 * proxies * case.D + 3 * case.M * proxies)
    if case.weight:
        operations += 6 * proxies * case.C * case.D
        moved += 4 * 8 * proxies * case.C
    products = operations / device.multiply
    selection = case.M * proxies * device.similarity
    return products + moved / device.bandwidth + selection + edges * device.edge + device.launch


def show_h200() -> None:
    """Print the model of a GPU beside what was measured on it."""
    columns = ["", "measured", "model", "model / measured", "fitted to it"]
    result = table("The model of a GPU beside an H200", columns)
    for case, microseconds, fitted in H200_MEASURED:
        model = 1e6 * gpu_seconds(case, H200)
        figures = f"{microseconds:,} us", f"{model:,.0f} us", f"{model / microseconds:.2f}"
        result.add_row(case.symbols, *figures, fitted)
    console.print(result)


def show_computed(case: Case) -> None:
    """Print what the model says of more classes than one GPU holds."""
    columns = ["GPUs", "kernels", "Adam", "network", "a step", "replicated network", "memory of a GPU", "fits"]
    result = table(f"Computed, not measured: H100 SXM, {case.symbols}", columns)
    kept = graph.neighbor_count(case.C, case.N, case.r)
    for processes in (8, 16, 32, 64):
        proxies = case.C * case.N / processes
        link = H100.link if processes <= 8 else H100.network
        kernels = gpu_seconds(case, H100, processes)
        adam = 7 * 4 * proxies * case.D / H100.bandwidth
        # A ring sends what is summed about twice.
        network = 2 * 4 * (2 * case.M * case.D + 1100 * case.M) / link + H100.exchanges * H100.exchange
        replicated = 2 * 4 * case.C * case.N * case.D / link
        memory = 16 * proxies * case.D + 4 * case.M * proxies + 40 * case.M * min(kept, proxies)
        total = max(kernels + adam + network, H100.host)
        times = (f"{1e3 * seconds:,.1f} ms" for seconds in (kernels, adam, network, total, replicated))
        result.add_row(str(processes), *times, f"{memory / 1e9:,.0f} GB", "yes" if memory < H100.memory else "no")
    console.print(result)


def main() -> None:
    """Measure, fit, check and extrapolate."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_model", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each shape")
    parser.add_argument("--computed", action="store_true", help="only the tables of GPUs, which need no measuring")
    arguments = parser.parse_args()
    if not arguments.computed:
        torch.set_num_threads(1)
        console.print(machine(torch.device("cpu")))
        plain = [(case, measured(case, arguments.seconds)) for case in FITTED]
        regularised = [with_regulariser(case, arguments.seconds) for case in REGULARISED]
        show_parts(plain)
        show_regulariser(regularised)
        coefficients = fit(plain + regularised)
        show_model(coefficients)
        checked = [(case, measured(case, arguments.seconds)) for case in CHECKED]
        checked += [with_regulariser(case, arguments.seconds) for case in REGULARISED_CHECKED]
        show_check(checked, coefficients)
        show_exchanges()
    show_h200()
    show_computed(Case("", 1_024, 512, 10_000_000, 1, 0.001, 0.0, 20.0))
    show_computed(Case("", 1_024, 512, 100_000_000, 1, 0.0001, 0.0, 20.0))


if __name__ == "__main__":
    main()
