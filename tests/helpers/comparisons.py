"""Rows of comparisons that nobody has run."""

import numpy as np
import pandas as pd


def rows(values: dict[str, list[float]]) -> pd.DataFrame:
    """Cells of the methods, one a seed; a NaN is a seed that diverged."""
    table = [
        {
            "method": method,
            "seed": seed,
            "trial": None,
            "data": "birds",
            "protocol": "epochs=3",
            "settings": "proxy_lr=0.1",
            "device": "CPU",
            "seconds_per_epoch": 2.0,
            "peak_memory_mib": 900.0,
            "gpu_memory_mib": None,
            "loss_parameters": 512,
            "recall_at_10": value,
            "recall_at_2": value,
            "map_at_r": value / 2,
            "r_precision": value / 2,
            "nmi": value,
            "note": "the loss became nan" if np.isnan(value) else None,
        }
        for method, seeds in values.items()
        for seed, value in enumerate(seeds)
    ]
    return pd.DataFrame(table)
