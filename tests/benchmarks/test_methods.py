"""benchmarks/methods: which methods share workers, and what its tables say."""

import argparse
import json

import pytest

from benchmarks.compare import parse
from benchmarks.methods import METHODS, points_for, results_table, speed_table
from recipe.amft.sweeps.execution import same_workers
from recipe.amft.sweeps.measured import MEASURED
from recipe.amft.sweeps.points import load


def test_methods_share_workers_exactly_when_the_workers_are_built_alike():
    """LUFFY has an entropy bonus, DPO another learning rate, ReLIFT another clip, PPO a critic; 7 or 8 rollouts are the
    driver's business."""
    points = points_for(["grpo", "luffy", "rft", "dpo", "relift", "ppo", "dyme"], [0], [])
    shared = [[member.method for member in group] for group in same_workers(points)]
    assert shared == [["grpo", "rft", "dyme"], ["luffy"], ["dpo"], ["relift"], ["ppo"]]


def test_seeds_never_share_workers():
    """The agent loops seed generations by the configuration they were started with."""
    assert len(same_workers(points_for(["grpo"], [0, 1], []))) == 2


def test_its_runs_are_those_of_the_tables():
    """What a sweep at micro scale has run, the benchmark finds finished, and the other way round."""
    own = {point.folder for point in points_for(METHODS, [0, 1, 2], [])}
    for name in ("amft_table2", "amft_table4", "dft_table8"):
        assert {point.folder for point in load(name, "micro").points()} <= own


def test_results_come_from_run_folders_and_missing_runs_are_marked(tmp_path):
    (done,), (missing,) = points_for(["grpo"], [0], []), points_for(["sft"], [0], [])
    folder = tmp_path / done.folder
    folder.mkdir(parents=True)
    rows = [
        {"step": 1, "phase": "warm-up", "val/success": 0.25, "time/step": 9.0},
        {"step": 2, "phase": "train", "time/step": 2.0},
        {"step": 3, "phase": "train", "val/success": 0.5, "time/step": 4.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / MEASURED).write_text(json.dumps({"seconds": 15.0, "gib": 1.25}))
    (folder / "FINISHED").write_text("")
    *_, grpo, sft = results_table([done, missing], tmp_path).splitlines()
    assert [cell.strip() for cell in grpo.split("|")[1:-1]] == ["`grpo`", "25.0%", "50.0%", "50.0%", "3.0 s", "1.2 GiB"]
    assert "not run" in sft
    assert "%" not in sft


def test_a_hybrid_is_compared_with_grpo_and_sft_of_its_own_workers_and_round():
    """Here 2 + 1 seconds in the first round and 4 + 1 in the second, beside other workers that are ten times slower.
    One step of AMFT's period of three has a meta-update, and the mean over the period is the method's."""

    def row(group, method, number, seconds, meta_update=False):
        return {
            "group": group, "method": method, "round": number, "step": 1, "meta_update": meta_update,
            "seconds": seconds, "every": 3,
        }  # fmt: skip

    rows = [row("a", "grpo", 0, 2.0), row("a", "sft", 0, 1.0), row("a", "grpo", 1, 4.0), row("a", "sft", 1, 1.0)]
    for number, plain in enumerate((3.0, 5.0)):
        rows += [row("a", "amft", number, plain), row("a", "amft", number, plain), row("a", "amft", number, 9.0, True)]
    rows += [row("b", "grpo", 0, 20.0), row("b", "sft", 0, 10.0), row("b", "luffy", 0, 45.0)]
    cells = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in speed_table(rows).splitlines()[2:]}
    assert cells["`amft, a step without one`"] == "1.00 ± 0.00"
    assert cells["`amft, a meta-update`"] == "2.40 ± 7.62"  # 9 / 3 and 9 / 5: 12.71 x 0.849 / sqrt(2)
    assert cells["`amft, mean of K = 3 steps`"] == "1.47 ± 2.54"  # 5 / 3 and 19 / 15
    assert cells["`luffy`"] == "1.50"


def test_overrides_may_stand_anywhere():
    """Also behind an option that takes several words."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--rounds", type=int)
    for words in ("a.b=1 --methods x y --rounds 3", "--methods x y a.b=1 --rounds 3", "--rounds 3 --methods x y a.b=1"):
        given, overrides = parse(parser, words.split())
        assert (given.methods, given.rounds, overrides) == (["x", "y"], 3, ["a.b=1"])


def test_an_unknown_method_is_refused(capsys, monkeypatch):
    from benchmarks import methods

    monkeypatch.setattr("sys.argv", ["methods", "--methods", "lufy"])
    with pytest.raises(SystemExit):
        methods.main()
    assert "luffy" in capsys.readouterr().err
