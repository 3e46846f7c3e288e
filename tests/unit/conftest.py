"""What no test of a unit may depend on: how busy the machine is, what is drawn, which tests came before, and a GPU."""

import os

# Before torch and DeepSpeed look for one; `tests/gpu` is for what it can show.
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}

from hypothesis import HealthCheck, settings

# How long an example takes is no fault, nor is it one to draw slowly. The same examples everywhere: a change is judged
# by what it changes. `make fuzz` draws others.
settings.register_profile("anywhere", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("anywhere")
