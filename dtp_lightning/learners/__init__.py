"""Learning rules, one file each. To add one: a file here, a YAML file in conf/learner/."""

from dtp_lightning.learners.base import Learner, StageTrace
from dtp_lightning.learners.bp import Backprop
from dtp_lightning.learners.dtp import DifferenceTargetPropagation, difference_target
from dtp_lightning.learners.feedback import AutoencoderFeedback

__all__ = [
    "AutoencoderFeedback",
    "Backprop",
    "DifferenceTargetPropagation",
    "Learner",
    "StageTrace",
    "difference_target",
]
