"""What every process of a run must have registered before it uses verl.

verl imports the modules named in `VERL_USE_EXTERNAL_MODULES` at the end of its own import; a run names this one.
"""

import os

if os.environ.get("VERL_PLATFORM") == "cpu":
    import verl_ext.cpu.platform  # noqa: F401
