"""What a method needs and does not find is said in words: demonstrations of its prompts, samples to learn from."""

import pytest

from recipe.amft.collected import CollectedRollouts
from recipe.amft.config import from_mapping
from recipe.amft.data.demonstrations import Demonstration
from recipe.amft.methods import make_method
from recipe.amft.step_data import StepDataTrainer

ROW = Demonstration("row-1", [5, 6], [7, 8, 9])


def data_of(method: str, *rows: Demonstration) -> StepDataTrainer:
    """The data side of the driver with these demonstrations, and no workers behind it."""
    trainer = object.__new__(StepDataTrainer)
    trainer.settings = from_mapping({"method": {"name": method}, "demonstrations": {"batch_size": 2}})
    trainer.method = make_method(trainer.settings)
    trainer.demonstration_of = {row.row_id: row for row in rows}
    return trainer


def collected_by(method: str, *rows: tuple[Demonstration, float]) -> CollectedRollouts:
    """What the method has collected so far, with batches of two."""
    settings = from_mapping({"method": {"name": method}, "demonstrations": {"batch_size": 2}})
    collected = CollectedRollouts(make_method(settings))
    for row, reward in rows:
        collected.add(row, reward)
    return collected


@pytest.mark.parametrize("method", ["luffy", "srft", "superrl", "hpt", "dyme", "relift"])
def test_a_prompt_without_a_demonstration_is_named(method: str) -> None:
    """Methods that learn the demonstrations of their own prompts say which row has none, and what to do."""
    trainer = data_of(method, ROW)
    assert trainer.demonstration("row-1") is ROW
    with pytest.raises(RuntimeError, match=rf"method={method} .*'row-2'.*give every row a target"):
        trainer.demonstration("row-2")


@pytest.mark.parametrize(("method", "in_pairs"), [("rft", False), ("dpo", True)])
def test_nothing_collected_is_said(method: str, in_pairs: bool) -> None:
    """No correct sample, or no prompt with both kinds: the first learning step ends the run in words."""
    with pytest.raises(RuntimeError, match=f"method={method}: the 0 collected rollouts give nothing to learn"):
        collected_by(method).next(in_pairs)


def test_samples_of_one_kind_make_no_pair() -> None:
    """DPO needs a correct and an incorrect one of the same prompt."""
    collected = collected_by("dpo", (ROW, 1.0), (ROW, 1.0))
    with pytest.raises(RuntimeError, match="the 2 collected rollouts give nothing to learn"):
        collected.next(in_pairs=True)
    collected.add(Demonstration("row-1", [5, 6], [4]), 0.0)
    assert [row.response for row in collected.next(in_pairs=True)] == [[7, 8, 9], [4]] * 2


def test_fewer_samples_than_a_batch_are_all_of_it() -> None:
    """RFT goes on with what there is, and where it was when it is resumed."""
    collected = collected_by("rft", (ROW, 1.0))
    assert collected.next(in_pairs=False) == [ROW]
    resumed = collected_by("rft")
    resumed.load_state_dict(collected.state_dict())
    assert resumed.next(in_pairs=False) == collected.next(in_pairs=False)
    assert resumed.position == collected.position


def test_a_method_that_asks_for_preferences_and_makes_no_pairs_is_said() -> None:
    """A slip of a new method."""
    with pytest.raises(NotImplementedError, match="method=rft asks for preferences and makes no pairs"):
        collected_by("rft", (ROW, 1.0)).next(in_pairs=True)
