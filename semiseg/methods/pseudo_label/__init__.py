"""Methods that learn from predictions, their own or a teacher's, as if these were labels."""

from semiseg.methods.pseudo_label.bcp import BCP
from semiseg.methods.pseudo_label.cps import CPS
from semiseg.methods.pseudo_label.entropy_minimization import EntropyMinimization
from semiseg.methods.pseudo_label.unimatch import UniMatch

__all__ = ["BCP", "CPS", "EntropyMinimization", "UniMatch"]
