"""Segment Anything (SAM): masks from points (Sec. 3.4) and proposals (Sec. 3.5), in torch."""

from rimjax.models.sam.adapter import Sam, SamMasker, SamProposer, build, load
from rimjax.models.sam.config import ProposalConfig, SamConfig

__all__ = [
    "ProposalConfig",
    "Sam",
    "SamConfig",
    "SamMasker",
    "SamProposer",
    "build",
    "load",
]
