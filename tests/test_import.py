"""What `import lorahydra` decides before torch is there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = "import os, sys, lorahydra; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "5000 False"), ({"GOMP_SPINCOUNT": "7"}, "7 False"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None False")],
)
def test_threads_spin_only_briefly_unless_the_user_decides(given: dict[str, str], expected: str) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
