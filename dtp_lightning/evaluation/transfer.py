"""Linear evaluation on another data set than the encoder was trained on."""

from __future__ import annotations

from collections.abc import Mapping

from dtp_lightning.data.images import ImageData
from dtp_lightning.errors import ConfigError, DataError
from dtp_lightning.evaluation.frozen import Evaluation, FrozenEncoder, Result


class Transfer(Evaluation):
    """The same probe on other data sets than that of pre-training, with images converted to the encoder's input.

    Args:
        probe: an evaluation with ``val_acc`` and ``test_acc``.
        to: name -> labelled data set.

    Raises:
        ConfigError: no data set is given, or an entry is no data set.
        DataError: a data set has no labels, or the probe cannot use it.
    """

    needs_labels = False  # of the pre-training data set

    def __init__(self, probe: Evaluation, to: Mapping[str, ImageData]) -> None:
        if not to:
            raise ConfigError("transfer to which data set? add +dataset@evaluation.transfer.to.cifar10=cifar10")
        for name, data in to.items():
            if not isinstance(data, ImageData):
                raise ConfigError(
                    f"to.{name}={data} is no data set: +dataset@evaluation.transfer.to.{name}={data} adds one"
                )
            if not data.classes:
                raise DataError(f"transfer to {name}: its images have no labels, which a probe needs")
            probe.check(data)
        self.probe = probe
        self.to = to

    def __call__(self, encoder: FrozenEncoder) -> Result:
        """Measure ``<name>/val_acc`` and ``<name>/test_acc``, in [0, 1], for each data set."""
        metrics: dict[str, float] = {}
        for name, data in self.to.items():
            result = self.probe(FrozenEncoder(encoder.network, data.like(encoder.data.spec), encoder.seed))
            metrics |= {f"{name}/{key}": value for key, value in result.metrics.items()}
        return Result(metrics)
