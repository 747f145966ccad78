"""A fit over eight devices, and over two processes, equals the fit on one device."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fit_distributed.py")
ROOT = SCRIPT.parents[2]
FLAGS = os.environ.get("XLA_FLAGS", "")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("family", "processes"),
    [
        ("kronecker_sbl", 1),
        pytest.param("functional_tucker", 1, marks=pytest.mark.full),
        # Two processes of one test beside another test take two cores for a minute.
        pytest.param("kronecker_sbl", 2, marks=pytest.mark.full),
        pytest.param("functional_tucker", 2, marks=pytest.mark.full),
        pytest.param("spectral_pde", 1, marks=pytest.mark.full),
        pytest.param("spectral_pde", 2, marks=pytest.mark.full),
        pytest.param("gaussian_mixture", 1, marks=pytest.mark.full),
        pytest.param("gaussian_mixture", 2, marks=pytest.mark.full),
        pytest.param("singular", 1, marks=pytest.mark.full),
        pytest.param("singular", 2, marks=pytest.mark.full),
    ],
)
def test_distributed_fit_equals_single_device_fit(family, processes):
    port = str(free_port())
    command = [sys.executable, str(SCRIPT), family, str(processes)]
    running = [
        subprocess.Popen(
            [*command, str(index), port],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "XLA_FLAGS": FLAGS},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
        assert "distributed fit equals the single-device fit" in output
