"""Runs all evaluations on the trained and on the untrained encoder, and plots their figures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dtp_lightning.data.images import ImageData
from dtp_lightning.evaluation.frozen import Evaluation, FrozenEncoder, Result
from dtp_lightning.evaluation.health import warnings_of
from dtp_lightning.figures import plots
from dtp_lightning.loggers.predictions import Predictions
from dtp_lightning.models.network import Network, freeze
from dtp_lightning.runs.summary import RANDOM
from dtp_lightning.runtime.signals import guard

REMEMBERED = 32
"""Untrained encoders whose results a process keeps: those of a sweep with so many seeds, models and data sets."""
_of_untrained: dict[str, Result] = {}


def evaluate_encoders(
    evaluations: Mapping[str, Evaluation],
    trained: Network,
    untrained: Network,
    data: ImageData,
    seed: int,
    device: torch.device,
    folder: Path,
    predictions: Predictions,
    measured_by: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run every evaluation on both encoders.

    The jobs of a sweep share one process, and those of a seed one untrained encoder: it is measured once.

    Args:
        evaluations: name -> evaluation.
        trained, untrained: the network after training, and before its first step; both are frozen here.
        data: the data set of the evaluations.
        seed: of the random numbers of the evaluations.
        device: where features are computed.
        folder: where figures are written.
        predictions: gets the classes that evaluations predicted for the test split from the trained encoder, and what
            they have histograms of.
        measured_by: evaluation's name -> all that decides its result but the weights, as text; an untrained encoder
            that this process measured under the same text is not measured again.

    Returns:
        ``<evaluation>/<metric>``, and the same below ``random_encoder/`` for the untrained one; ``warnings``,
        sentences, where these numbers are worth little (:mod:`dtp_lightning.evaluation.health`).
    """
    networks = {"": trained, RANDOM: untrained}
    results: dict[str, dict[str, Result]] = {name: {} for name in evaluations}
    for prefix, network in networks.items():
        encoder = FrozenEncoder(freeze(network).to(device), data, seed)  # its features go before the next one's come
        known = _keys(network, measured_by) if prefix == RANDOM and measured_by else {}
        for name, evaluate in guard.checked(evaluations.items()):
            found = _of_untrained.pop(known.get(name, ""), None) or evaluate(encoder)
            results[name][prefix] = found
            if name in known:
                _of_untrained[known[name]] = found
    for key in list(_of_untrained)[:-REMEMBERED]:
        del _of_untrained[key]
    metrics: dict[str, float] = {}
    for name, both in results.items():
        for prefix, result in both.items():
            metrics |= {f"{prefix}{name}/{key}": value for key, value in result.metrics.items()}
            predictions.add_histograms(prefix + name, result.histograms)
        _plot(name, both, data, folder)
        if (classes := both[""].test_predictions) is not None:
            predictions.add(name, classes)
    told = warnings_of(trained, data, metrics)
    return {**metrics, **({"warnings": told} if told else {})}


def _keys(network: Network, measured_by: Mapping[str, str]) -> dict[str, str]:
    """Of each evaluation, with the architecture and every weight."""
    found = hashlib.sha256(repr(network).encode())
    for name, value in network.state_dict().items():
        found.update(name.encode() + value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return {name: f"{found.hexdigest()} {name} {text}" for name, text in measured_by.items()}


def _plot(name: str, results: Mapping[str, Result], data: ImageData, folder: Path) -> None:
    """Plot the confusion matrix and the histograms of an evaluation, if it has any."""
    trained = results[""]
    if trained.test_predictions is not None:
        title = f"{name}, test accuracy {100 * trained.metrics['test_acc']:.1f} %"
        path = folder / f"confusion_{name}.png"
        plots.plot_confusion(data.test.labels, trained.test_predictions, data.classes, title, path)
    if trained.histograms:
        rows = {"random encoder": results[RANDOM].histograms, "trained": trained.histograms}
        plots.plot_histograms(rows, folder / f"{name}.png")
