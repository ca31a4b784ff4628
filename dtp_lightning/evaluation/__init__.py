"""Evaluations: a frozen encoder and a data set -> metrics. To add one: a file here, a YAML file in conf/evaluation/."""

from dtp_lightning.evaluation.distances import Distances
from dtp_lightning.evaluation.frozen import ClassProbe, Evaluation, FeatureSplit, FrozenEncoder, Result, accuracy
from dtp_lightning.evaluation.knn import NearestNeighbours
from dtp_lightning.evaluation.layerwise import Layerwise
from dtp_lightning.evaluation.linear import FewLabels, LinearProbe
from dtp_lightning.evaluation.linear_thesis import ThesisLinearProbe
from dtp_lightning.evaluation.transfer import Transfer

__all__ = [
    "ClassProbe",
    "Distances",
    "Evaluation",
    "FeatureSplit",
    "FewLabels",
    "FrozenEncoder",
    "Layerwise",
    "LinearProbe",
    "NearestNeighbours",
    "Result",
    "ThesisLinearProbe",
    "Transfer",
    "accuracy",
]
