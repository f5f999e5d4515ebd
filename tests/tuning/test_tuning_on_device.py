"""A search that a device judges: the unmodified client, and the service on this machine."""

import pytest
from hub.reached import service as service

from compiler.errors import UserError
from compiler.tuning import space
from compiler.tuning.judges import Judge
from compiler.tuning.running import Model, tune
from compiler.tuning.space import Slot

DEVICE = "Samsung Galaxy S24 (Family)"
HALF_AN_HOUR = 30.0


def test_each_candidate_is_profiled_once(tmp_path, depth_model, service, monkeypatch):
    monkeypatch.setattr(space, "SLOTS", (Slot(("split_heads",)),))
    model, folder, judge = Model(str(depth_model)), tmp_path / "tuned", Judge(device=DEVICE)
    record = tune(model, folder, judge, minutes=HALF_AN_HOUR)
    assert [c["effective"] for c in record["candidates"]] == ["", "split_heads"]
    for candidate in record["candidates"]:
        (measurement,) = candidate["measurements"]
        assert measurement["where"] == DEVICE
        assert measurement["ms"] > 0
    assert service.count("model create") == 2
    sent = len(service.requests)
    assert tune(model, folder, judge, minutes=HALF_AN_HOUR)["candidates"] == record["candidates"]
    assert service.count("model create") == 2
    assert len(service.requests) <= sent + 1, "the device's lookup, and nothing else"


def test_a_device_that_nobody_has_is_refused_before_any_work(tmp_path, depth_model, service):
    with pytest.raises(UserError, match="AI Hub has no device 'S 24'"):
        tune(Model(str(depth_model)), tmp_path / "tuned", Judge(device="S 24"), minutes=1.0)
    assert not (tmp_path / "tuned").exists()
