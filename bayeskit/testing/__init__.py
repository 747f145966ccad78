"""Trust: one suite of checks for every pair of model and method, and simulation-based calibration."""

from bayeskit.testing.calibration import CalibrationResult, calibrate
from bayeskit.testing.checks import CHECKS, check_model

__all__ = ["CHECKS", "CalibrationResult", "calibrate", "check_model"]
