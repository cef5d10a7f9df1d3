"""Methods: one paper, one file, one LightningModule each."""

from semiseg.methods.adversarial import ADVENT
from semiseg.methods.base import Method, PretrainingMethod, SegmentationMethod
from semiseg.methods.consistency import CCT, DTC, ICT, UAMT, URPC, MCNet, MeanTeacher, PiModel
from semiseg.methods.diffusion import DiffusionPretrain, DiffusionTeacherStudent
from semiseg.methods.linear_probe import LinearProbe
from semiseg.methods.pretraining import HebbianPretrain
from semiseg.methods.pseudo_label import BCP, CPS, EntropyMinimization, UniMatch
from semiseg.methods.semi_supervised import SemiSupervisedMethod, TeacherStudentMethod
from semiseg.methods.supervised import Supervised

__all__ = [
    "ADVENT",
    "BCP",
    "CCT",
    "CPS",
    "DTC",
    "ICT",
    "UAMT",
    "URPC",
    "DiffusionPretrain",
    "DiffusionTeacherStudent",
    "EntropyMinimization",
    "HebbianPretrain",
    "LinearProbe",
    "MCNet",
    "MeanTeacher",
    "Method",
    "PiModel",
    "PretrainingMethod",
    "SegmentationMethod",
    "SemiSupervisedMethod",
    "Supervised",
    "TeacherStudentMethod",
    "UniMatch",
]
