"""Networks that map an image (B, C, *S) to logits (B, K, *S), in 2D and 3D by one code path."""

from semiseg.networks.base import Network, check_memory
from semiseg.networks.denoiser import Denoiser
from semiseg.networks.unet import UNet
from semiseg.networks.vnet import VNet
from semiseg.networks.weights import WeightsReport, load_weights

__all__ = ["Denoiser", "Network", "UNet", "VNet", "WeightsReport", "check_memory", "load_weights"]
