"""Biologically plausible self-supervised learning: any learning rule, any objective, any task, on one command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtp_lightning.export.encoder import load_encoder

__version__ = "0.2.0"
__all__ = ["load_encoder"]


def __getattr__(name: str) -> Any:
    """``load_encoder``, imported when it is asked for: torch takes seconds, which ``dtp --help`` must not."""
    if name == "load_encoder":
        from dtp_lightning.export.encoder import load_encoder

        return load_encoder
    raise AttributeError(f"module 'dtp_lightning' has no attribute '{name}'")
