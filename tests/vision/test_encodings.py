"""vLLM encodes an image once, however often the turns of a conversation send it, and anew after a weight sync."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_an_image_is_encoded_once(family, tmp_path):
    """Three turns and another sample of the same picture: once. Empty caches, as after a weight sync: once more."""
    variables = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(HERE / "encodings.py"), family, str(tmp_path)]
    finished = subprocess.run(command, env=variables, text=True, capture_output=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1]) == {"turns": 1, "again": 1, "other": 2, "synced": 3}
