"""Benchmarks: peers side by side on the same problems."""
