"""What a run took: the memory of a process tree and wall seconds, in a file beside the run."""

import json
import subprocess
import sys

import psutil
import pytest

from recipe.amft.sweeps.measured import MEASURED, measured, tree_bytes

HOLDS = "import sys; held = bytearray(300 << 20); print('ready', flush=True); sys.stdin.read()"


@pytest.fixture
def holder():
    """A process that holds 300 MiB."""
    child = subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    yield psutil.Process(child.pid)
    child.communicate()


def test_the_memory_of_descendants_counts(holder):
    """The tree of this process has at least what its child holds; the child's own is that and little more."""
    assert tree_bytes(psutil.Process()) > 300 << 20
    assert 300 << 20 < tree_bytes(holder) < 360 << 20


def test_a_process_that_has_ended_counts_nothing(holder):
    holder.kill()
    holder.wait()
    assert tree_bytes(holder) == 0


def test_what_a_block_took_is_written_when_it_succeeds(tmp_path, holder):
    with measured(tmp_path, holder):
        pass
    record = json.loads((tmp_path / MEASURED).read_text())
    assert 0 <= record["seconds"] < 60
    assert 300 / 1024 < record["gib"] < 360 / 1024


def test_a_block_that_fails_leaves_no_record(tmp_path):
    with pytest.raises(RuntimeError, match="broken"), measured(tmp_path):
        raise RuntimeError("broken")
    assert not (tmp_path / MEASURED).exists()
