"""What a search needs of the node that it is run from."""

from types import SimpleNamespace

import pytest

from raysft.errors import RunError
from raysft.search import tuner


@pytest.fixture
def first_node(monkeypatch):
    """The first node of a cluster; the test says what of its resources is free."""
    free = {}
    resources = {"CPU": 2.0, "node:10.0.0.1": 1.0, "node:__internal_head__": 1.0}
    nodes = [
        {"NodeID": "other", "Resources": {"node:10.0.0.2": 1.0}},
        {"NodeID": "here", "Resources": resources},
    ]
    context = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(tuner.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(tuner.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(tuner.ray, "available_resources", lambda: free)
    monkeypatch.setattr(tuner, "MOST_SECONDS", 0.01)
    return free


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ({"node:10.0.0.1": 1.0, "node:__internal_head__": 1.0}, "node:10.0.0.1"),
        # of another search some stand-ins are at work
        ({"node:10.0.0.1": 0.6, "node:__internal_head__": 1.0}, "node:__internal_head__"),
        # actors of Ray's own
        ({"node:10.0.0.1": 0.997, "node:__internal_head__": 1.0}, "node:10.0.0.1"),
    ],
)
def test_search_takes_the_places_that_are_free(first_node, free, expected):
    first_node.update(free)
    assert tuner._free_resource(2) == expected


def test_search_without_places_is_refused(first_node):
    first_node.update({"node:10.0.0.2": 1.0, "node:__internal_head__": 0.5})
    with pytest.raises(RunError, match="2 other searches are run from this node"):
        tuner._free_resource(2)


@pytest.mark.parametrize("teams", [1, 2, 3, 7, 16, 64])
def test_stand_ins_leave_something_to_actors_of_ray(teams):
    share = tuner.share_of_stand_in(teams)
    assert teams * share <= 1 - 2 * 0.001
    assert (teams + 1) * share > 1
