"""Segment Anything (SAM): masks from points (Sec. 3.4) and proposals (Sec. 3.5), in torch."""

from rimjax.models.sam.adapter import SamMasker, SamProposer
from rimjax.models.sam.config import ProposalConfig, SamConfig, SamPrecision
from rimjax.models.sam.model import Sam, build, load

__all__ = [
    "ProposalConfig",
    "Sam",
    "SamConfig",
    "SamMasker",
    "SamPrecision",
    "SamProposer",
    "build",
    "load",
]
