"""Runs for which tests train."""

from __future__ import annotations

import pytest

from trainer_world import World, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run whose rounds take a minute."""
    return make_world(tmp_path_factory.mktemp("endless"), inner_steps=5000)
