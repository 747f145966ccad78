"""Trust: checks that every pair of model and method passes, and simulation-based calibration."""

from bayeskit.testing.calibration import CalibrationResult, calibrate
from bayeskit.testing.checks import CHECKS, check_model

__all__ = ["CHECKS", "CalibrationResult", "calibrate", "check_model"]
