"""Figures of the authors of KroSBL, to stand beside ours.

They are read from the result files and figure labels in the authors' public repositories that
accompany He and Joseph, IEEE Transactions on Signal Processing, 2024 (arXiv:2307.14719). Their
data were drawn at random, so figures agree in distribution, not in every digit.
"""

from typing import NamedTuple


class Recovery(NamedTuple):
    """Synthetic recovery: N_i = 15, 25 dB, K = 3 an axis, rank-one x, noise unknown, 100 trials."""

    algorithm: str
    rows: int  # M_1, beside M_2 = 12 and M_3 = 15
    mean_nmse: float
    median_nmse: float
    support_recovery: float
    seconds: float  # MATLAB


class Channel(NamedTuple):
    """IRS channel sounding: 50 trials, known noise."""

    algorithm: str
    snr_db: float
    mean_nmse: float
    median_nmse: float


RECOVERY = (
    Recovery("SVD-KroSBL", 8, 3.4e-4, 1.7e-4, 0.896, 2.0),
    Recovery("SVD-KroSBL", 10, 1.2e-2, 1.2e-4, 0.875, 1.7),
    Recovery("AM-KroSBL", 8, 2.1e-2, 2.7e-3, 0.691, 8.4),
    Recovery("AM-KroSBL", 10, 1.7e-2, 4.0e-4, 0.751, 7.9),
    Recovery("KSBL", 8, 0.23, 6.3e-3, 0.531, 12.6),
    Recovery("KSBL", 10, 1.8e-2, 4.6e-4, 0.741, 13.0),
    Recovery("classic SBL", 8, 9.3e-3, 2.7e-3, 0.646, 14.9),
    Recovery("classic SBL", 10, 1.2e-2, 1.3e-3, 0.705, 17.2),
)

# NMSE in the convergence figure, one realisation: M = (14, 12, 15), K = 4, 30 dB, independent
# gains on a Kronecker support.
CONVERGENCE = {
    "noise known": {
        "classic SBL": 5.4e-4,
        "KSBL": 3.6e-4,
        "AM-KroSBL": 3.7e-5,
        "SVD-KroSBL": 3.9e-5,
    },
    "noise unknown": {
        "classic SBL": 1.6e-3,
        "KSBL": 3.7e-4,
        "AM-KroSBL": 3.8e-5,
        "SVD-KroSBL": 3.9e-5,
    },
}

CHANNEL = (
    Channel("AM-KroSBL", 4, 0.71, 0.95),
    Channel("AM-KroSBL", 8, 0.32, 0.16),
    Channel("AM-KroSBL", 12, 0.20, 0.023),
    Channel("AM-KroSBL", 16, 0.14, 0.0051),
    Channel("AM-KroSBL", 20, 0.070, 0.0012),
    Channel("SVD-KroSBL", 4, 0.61, 0.43),
    Channel("SVD-KroSBL", 8, 0.30, 0.09),
    Channel("SVD-KroSBL", 12, 0.19, 0.010),
    Channel("SVD-KroSBL", 16, 0.12, 0.0038),
    Channel("SVD-KroSBL", 20, 0.105, 0.0013),
    Channel("PC-KroSBL", 4, 0.31, 0.125),
    Channel("PC-KroSBL", 8, 0.13, 0.037),
    Channel("PC-KroSBL", 12, 0.049, 0.012),
    Channel("PC-KroSBL", 16, 0.0089, 0.0042),
    Channel("PC-KroSBL", 20, 0.0029, 0.0015),
    Channel("classic SBL", 4, 0.95, 0.87),
    Channel("classic SBL", 8, 0.72, 0.59),
    Channel("classic SBL", 12, 0.46, 0.29),
    Channel("classic SBL", 16, 0.23, 0.035),
    Channel("classic SBL", 20, 0.14, 0.008),
)

# At 12 dB.
SYMBOL_ERROR_RATE = {
    "PC-KroSBL": 0.0005,
    "AM-KroSBL": 0.027,
    "SVD-KroSBL": 0.092,
    "classic SBL": 0.112,
}
