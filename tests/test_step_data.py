"""What a method needs and does not find is said in words: demonstrations of its prompts, samples to learn from."""

import pytest

from recipe.amft.config import from_mapping
from recipe.amft.data.demonstrations import Demonstration
from recipe.amft.methods import StepPlan, make_method
from recipe.amft.step_data import StepDataTrainer

ROW = Demonstration("row-1", [5, 6], [7, 8, 9])
COLLECTED = StepPlan(rollouts=False, collected=True)
PREFERENCES = StepPlan(rollouts=False, collected=True, preferences=True)


def data_of(method: str, *rows: Demonstration) -> StepDataTrainer:
    """The data side of the driver with these demonstrations, and no workers behind it."""
    trainer = object.__new__(StepDataTrainer)
    trainer.settings = from_mapping({"method": {"name": method}, "demonstrations": {"batch_size": 2}})
    trainer.method = make_method(trainer.settings)
    trainer.demonstration_of = {row.row_id: row for row in rows}
    trainer.forget_collected()
    return trainer


@pytest.mark.parametrize("method", ["luffy", "srft", "superrl", "hpt", "dyme", "relift"])
def test_a_prompt_without_a_demonstration_is_named(method: str) -> None:
    """Methods that learn the demonstrations of their own prompts say which row has none, and what to do."""
    trainer = data_of(method, ROW)
    assert trainer.demonstration("row-1") is ROW
    with pytest.raises(RuntimeError, match=rf"method={method} .*'row-2'.*give every row a target"):
        trainer.demonstration("row-2")


@pytest.mark.parametrize(("method", "plan"), [("rft", COLLECTED), ("dpo", PREFERENCES)])
def test_nothing_collected_is_said(method: str, plan: StepPlan) -> None:
    """No correct sample, or no prompt with both kinds: the first learning step ends the run in words."""
    with pytest.raises(RuntimeError, match=f"method={method}: the 0 collected rollouts give nothing to learn"):
        data_of(method).next_collected(plan)


def test_samples_of_one_kind_make_no_pair() -> None:
    """DPO needs a correct and an incorrect one of the same prompt."""
    trainer = data_of("dpo")
    trainer.collected = [(ROW, 1.0), (ROW, 1.0)]
    with pytest.raises(RuntimeError, match="the 2 collected rollouts give nothing to learn"):
        trainer.next_collected(PREFERENCES)
    trainer.collected.append((Demonstration("row-1", [5, 6], [4]), 0.0))
    assert [row.response for row in trainer.next_collected(PREFERENCES)] == [[7, 8, 9], [4]] * 2


def test_fewer_samples_than_a_batch_are_all_of_it() -> None:
    """RFT goes on with what there is, and where it was when it is resumed."""
    trainer = data_of("rft")
    trainer.collected = [(ROW, 1.0)]
    assert trainer.next_collected(COLLECTED) == [ROW]
    resumed = data_of("rft")
    resumed.collected, resumed.collected_position = trainer.collected, trainer.collected_position
    assert resumed.next_collected(COLLECTED) == trainer.next_collected(COLLECTED)
    assert resumed.collected_position == trainer.collected_position


def test_a_method_that_asks_for_preferences_and_makes_no_pairs_is_said() -> None:
    """A slip of a new method."""
    trainer = data_of("rft")
    trainer.collected = [(ROW, 1.0)]
    with pytest.raises(NotImplementedError, match="method=rft asks for preferences and makes no pairs"):
        trainer.next_collected(PREFERENCES)
