"""The only folder that imports torch: models, checkpoints, gradients, training."""

ENGINE_VERSION = "3"  # part of every block's address: raise it with any change that can alter a kernel's bytes
