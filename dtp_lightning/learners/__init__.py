"""Learning rules, one file each. To add one: a file here, a YAML file in conf/learner/."""

from dtp_lightning.learners.base import Learner, StageTrace
from dtp_lightning.learners.bp import Backprop
from dtp_lightning.learners.clapp_feedback import ClappFeedback
from dtp_lightning.learners.direct import DirectFeedback, DirectTraining
from dtp_lightning.learners.dual_propagation import DualPropagation
from dtp_lightning.learners.feedback import Feedback, FeedbackTraining, FixedFeedback
from dtp_lightning.learners.feedback_alignment import FeedbackAlignment
from dtp_lightning.learners.forward_forward import ForwardForward
from dtp_lightning.learners.forward_only import ForwardOnly
from dtp_lightning.learners.kolen_pollack import KolenPollackFeedback, WeightMirrorFeedback
from dtp_lightning.learners.layerwise import LayerwiseLearning
from dtp_lightning.learners.lpl import LatentPredictiveLearning
from dtp_lightning.learners.optimizers import LARS, SGD, AdamW
from dtp_lightning.learners.reconstruction import (
    AutoencoderFeedback,
    DifferenceReconstruction,
    LocalDifferenceReconstruction,
)
from dtp_lightning.learners.scff import SelfContrastive
from dtp_lightning.learners.schedule import Course, Schedule
from dtp_lightning.learners.softhebb import SoftHebb
from dtp_lightning.learners.target_network import TargetNetwork
from dtp_lightning.learners.target_propagation import TargetPropagation, difference_error

__all__ = [
    "LARS",
    "SGD",
    "AdamW",
    "AutoencoderFeedback",
    "Backprop",
    "ClappFeedback",
    "Course",
    "DifferenceReconstruction",
    "DirectFeedback",
    "DirectTraining",
    "DualPropagation",
    "Feedback",
    "FeedbackAlignment",
    "FeedbackTraining",
    "FixedFeedback",
    "ForwardForward",
    "ForwardOnly",
    "KolenPollackFeedback",
    "LatentPredictiveLearning",
    "LayerwiseLearning",
    "Learner",
    "LocalDifferenceReconstruction",
    "Schedule",
    "SelfContrastive",
    "SoftHebb",
    "StageTrace",
    "TargetNetwork",
    "TargetPropagation",
    "WeightMirrorFeedback",
    "difference_error",
]
