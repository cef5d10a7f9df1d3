"""Methods that denoise."""

from semiseg.methods.diffusion.pretrain import DiffusionPretrain
from semiseg.methods.diffusion.teacher_student import DiffusionTeacherStudent

__all__ = ["DiffusionPretrain", "DiffusionTeacherStudent"]
