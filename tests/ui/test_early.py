"""What the first model needs is imported before it is asked for."""

import subprocess
import sys

import pytest


@pytest.mark.long
def test_the_server_imports_early_and_ends_with_collections_on() -> None:
    code = (
        "import gc, sys\nfrom interp.ui.shared import early\n"
        "assert not set(early.MODULES) & set(sys.modules)\n"
        "early.begin()\nearly.wait()\n"
        "assert set(early.MODULES) <= set(sys.modules), early.MODULES\nassert gc.isenabled()\n"
        "early._THREAD.join()\nassert 'plotly.graph_objs._heatmap' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
