"""verl picks its platform when it is first imported: every test process is prepared as a run's processes are."""

from recipe.amft.process import prepare_process

prepare_process()
