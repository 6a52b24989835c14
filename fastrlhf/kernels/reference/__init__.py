"""Every operation in plain PyTorch: the definition of right, in any float dtype, and the fallback everywhere."""
