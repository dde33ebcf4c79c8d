"""The engine's own tests on an accelerator (`scripts/test-device cuda`): tensors and models that do not say otherwise are made on it."""

import os

import hypothesis
import torch

torch.set_default_device(os.environ["TEST_DEVICE"])
hypothesis.settings.register_profile("device", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("device")
