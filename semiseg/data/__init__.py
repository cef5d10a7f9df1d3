"""Data sets: one file, one LightningDataModule each."""

from semiseg.data.acdc import ACDC
from semiseg.data.base import SegmentationDataModule
from semiseg.data.folder import Folder
from semiseg.data.glas import GlaS
from semiseg.data.hmeps import HMEPS
from semiseg.data.left_atrium import LeftAtrium
from semiseg.data.oct_cme import OCTCME
from semiseg.data.ph2 import PH2
from semiseg.data.qata_cov19 import QaTaCOV19
from semiseg.data.synthetic import Synthetic

__all__ = [
    "ACDC",
    "HMEPS",
    "OCTCME",
    "PH2",
    "Folder",
    "GlaS",
    "LeftAtrium",
    "QaTaCOV19",
    "SegmentationDataModule",
    "Synthetic",
]
