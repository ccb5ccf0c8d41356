"""A folder that not all nodes see is no storage of a cluster."""

from pathlib import Path

import pytest
import ray

from cddpm.cluster import tasks
from cddpm.errors import SearchError


def test_a_folder_that_some_node_does_not_see_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}])
    seen = {"10.77.0.2": True, "10.77.0.3": False}
    monkeypatch.setattr(tasks, "on_each_node", lambda function, path: seen)
    with pytest.raises(
        SearchError,
        match=rf"{tmp_path} is not the same folder on node\(s\) 10\.77\.0\.3; .*shared.*--storage s3://BUCKET/PREFIX",
    ):
        tasks.check_shared(tmp_path)
    seen["10.77.0.3"] = True
    tasks.check_shared(tmp_path)


def test_one_node_may_have_any_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    tasks.check_shared(Path("/nowhere"))
