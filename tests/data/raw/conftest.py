from pathlib import Path

import pytest
import raw_trees
from prepared_runs import IXI


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    raw_trees.ixi(root / "ixi", IXI)
    raw_trees.brats(root / "brats", (1, 2, 3, 4))
    raw_trees.wmh(root / "wmh", {"Utrecht": (0, 2), "GE3T": (100, 101)})
    return root
