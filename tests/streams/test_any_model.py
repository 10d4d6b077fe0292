"""A backend with `any_model` answers under every name, and only such a one does."""

from __future__ import annotations

import pytest

from tests.topology.scene import Scene, backend


def test_a_name_that_nobody_has_goes_to_a_backend_that_takes_any() -> None:
    scene = Scene.of(backend(any_model=True), models=("tiny",))
    scene.accept("a", model="gpt-unheard-of")
    assert [("b1", "tiny")] == [(batch.backend, batch.model) for batch in scene.sent]
    assert [] == scene.finished


def test_without_one_the_name_is_unknown() -> None:
    scene = Scene.of(backend(), models=("tiny",))
    scene.accept("a", model="gpt-unheard-of")
    (finish,) = scene.finished
    assert finish.result.error is not None
    assert finish.result.error.type == "unknown_model"


@pytest.mark.parametrize("model", ["gpt-unheard-of", "tiny", None])
def test_among_others_every_request_is_served(model: str | None) -> None:
    scene = Scene.of(backend("picky"), backend("generous", any_model=True), models=("tiny",))
    scene.accept("a", model=model)
    (batch,) = scene.sent
    assert batch.backend == "generous" or model != "gpt-unheard-of"
