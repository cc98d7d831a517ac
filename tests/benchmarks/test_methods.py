"""benchmarks/methods: which methods share workers, and what its tables say."""

import json

import pytest

from benchmarks.methods import MEASURED, Point, groups, results_table, speed_table


def point(tmp_path, method: str, seed: int = 0) -> Point:
    return Point(method, seed, (f"amft.cache_dir={tmp_path}",), tmp_path)


def test_methods_share_workers_exactly_when_the_workers_are_built_alike(tmp_path):
    """LUFFY has an entropy bonus, ReLIFT another clip, PPO a critic; 7 or 8 rollouts are the driver's business."""
    points = [point(tmp_path, method) for method in ("grpo", "luffy", "dpo", "relift", "ppo", "dyme")]
    shared = [[member.method for member in group] for group in groups(points)]
    assert shared == [["grpo", "dpo", "dyme"], ["luffy"], ["relift"], ["ppo"]]


def test_seeds_never_share_workers(tmp_path):
    """The agent loops seed generations by the configuration they were started with."""
    assert len(groups([point(tmp_path, "grpo", 0), point(tmp_path, "grpo", 1)])) == 2


def test_results_come_from_run_folders_and_missing_runs_are_marked(tmp_path):
    done, missing = point(tmp_path, "grpo"), point(tmp_path, "sft")
    done.folder.mkdir()
    rows = [
        {"step": 1, "phase": "warm-up", "val/success": 0.25, "time/step": 9.0},
        {"step": 2, "phase": "train", "time/step": 2.0},
        {"step": 3, "phase": "train", "val/success": 0.5, "time/step": 4.0},
    ]
    (done.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (done.folder / MEASURED).write_text(json.dumps({"seconds": 15.0, "gib": 1.25}))
    *_, grpo, sft = results_table([done, missing]).splitlines()
    assert [cell.strip() for cell in grpo.split("|")[1:-1]] == ["`grpo`", "25.0%", "50.0%", "50.0%", "3.0 s", "1.2 GiB"]
    assert "not run" in sft
    assert "%" not in sft


def test_a_hybrid_is_compared_with_grpo_and_sft_of_its_own_workers_and_round():
    """Here 2 + 1 seconds in the first round and 4 + 1 in the second, beside other workers that are ten times slower."""

    def row(group, method, number, seconds, meta_update=False):
        return {
            "group": group, "method": method, "round": number, "step": 1, "meta_update": meta_update,
            "seconds": seconds,
        }  # fmt: skip

    rows = [row("a", "grpo", 0, 2.0), row("a", "sft", 0, 1.0), row("a", "amft", 0, 3.0), row("a", "amft", 0, 9.0, True)]
    rows += [row("a", "grpo", 1, 4.0), row("a", "sft", 1, 1.0), row("a", "amft", 1, 5.0)]
    rows += [row("b", "grpo", 0, 20.0), row("b", "sft", 0, 10.0), row("b", "luffy", 0, 45.0)]
    cells = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in speed_table(rows).splitlines()[2:]}
    assert cells["`amft`"] == "1.00 ± 0.00"
    assert cells["`amft, a meta-update`"] == "3.00"
    assert cells["`luffy`"] == "1.50"


def test_an_unknown_method_is_refused(capsys, monkeypatch):
    from benchmarks import methods

    monkeypatch.setattr("sys.argv", ["methods", "--methods", "lufy"])
    with pytest.raises(SystemExit):
        methods.main()
    assert "luffy" in capsys.readouterr().err
