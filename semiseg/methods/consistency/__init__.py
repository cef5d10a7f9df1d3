"""Methods that ask for the same prediction of an image seen, perturbed or decoded in different ways."""

from semiseg.methods.consistency.cct import CCT
from semiseg.methods.consistency.dtc import DTC
from semiseg.methods.consistency.ict import ICT
from semiseg.methods.consistency.mcnet import MCNet
from semiseg.methods.consistency.mean_teacher import MeanTeacher
from semiseg.methods.consistency.pi_model import PiModel
from semiseg.methods.consistency.uamt import UAMT
from semiseg.methods.consistency.urpc import URPC

__all__ = ["CCT", "DTC", "ICT", "UAMT", "URPC", "MCNet", "MeanTeacher", "PiModel"]
