"""Stages (a forward map that knows its own feedback map), backbones and heads."""

from dtp_lightning.models.block_feedback import BlockTranspose, Decoder
from dtp_lightning.models.feedback_maps import ConvFeedback, FeedbackMap
from dtp_lightning.models.forward_only import forward_only_net
from dtp_lightning.models.library import library_net
from dtp_lightning.models.mlp import mlp
from dtp_lightning.models.network import Network, conv_net, features_of, freeze
from dtp_lightning.models.residual import resnet
from dtp_lightning.models.stage import Stage, conv_stage

__all__ = [
    "BlockTranspose",
    "ConvFeedback",
    "Decoder",
    "FeedbackMap",
    "Network",
    "Stage",
    "conv_net",
    "conv_stage",
    "features_of",
    "forward_only_net",
    "freeze",
    "library_net",
    "mlp",
    "resnet",
]
