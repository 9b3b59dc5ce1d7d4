"""The tensors of a model folder, read where they lie: safetensors files, and torch's zip files without running what they hold."""

from quadrate.runtime.weights.weights import Place, Weights

__all__ = ["Place", "Weights"]
