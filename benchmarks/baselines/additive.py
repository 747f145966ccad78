"""Simple predictors of a table by day and station."""

import numpy as np


def day_mean(day, station, values, new_day, new_station):
    """The mean of the training rows of the same day."""
    count = int(max(day.max(), new_day.max())) + 1
    total = np.bincount(day, minlength=count)
    sums = np.bincount(day, values, minlength=count)
    means = np.where(total > 0, sums / np.maximum(total, 1), values.mean())
    return means[new_day]


def additive(day, station, values, new_day, new_station, ridge=0.1, rank=0, sweeps=60):
    """Day and station effects, plus a low-rank product of both by alternating least squares."""
    days = int(max(day.max(), new_day.max())) + 1
    stations = int(max(station.max(), new_station.max())) + 1
    day_effect, station_effect = np.zeros(days), np.zeros(stations)
    for _ in range(sweeps):
        left = values - station_effect[station]
        day_effect = np.bincount(day, left, minlength=days) / (
            np.bincount(day, minlength=days) + ridge
        )
        left = values - day_effect[day]
        station_effect = np.bincount(station, left, minlength=stations) / (
            np.bincount(station, minlength=stations) + ridge
        )
    result = day_effect[new_day] + station_effect[new_station]
    residual = values - day_effect[day] - station_effect[station]
    generator = np.random.default_rng(0)
    for _ in range(rank):
        loading = generator.normal(size=stations)
        for _ in range(sweeps):
            product = np.bincount(day, residual * loading[station], minlength=days)
            square = np.bincount(day, loading[station] ** 2, minlength=days)
            score = product / (square + 10 * ridge)
            product = np.bincount(station, residual * score[day], minlength=stations)
            square = np.bincount(station, score[day] ** 2, minlength=stations)
            loading = product / (square + 10 * ridge)
        result = result + score[new_day] * loading[new_station]
        residual = residual - score[day] * loading[station]
    return result
