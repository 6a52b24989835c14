"""Skips where a package of the demo is absent, naming it and the command that installs it."""

import pytest

from fastrlhf.demo import assets


def _skip_without(*packages: assets.Package) -> None:
    for package in packages:
        try:
            assets.require(package)
        except assets.MissingAssetError as missing:
            pytest.skip(str(missing))


@pytest.fixture(scope="session")
def movie_reviews() -> None:
    _skip_without(assets.MOVIE_REVIEWS)


@pytest.fixture(scope="session")
def vader() -> None:
    _skip_without(assets.VADER)


@pytest.fixture(scope="session")
def smollm2() -> None:
    _skip_without(assets.SMOLLM2, assets.GGUF)


@pytest.fixture(scope="session")
def minilm() -> None:
    _skip_without(assets.MINILM)


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Any attempt to open a connection or to look a name up fails the test."""

    def refuse(*_, **__):
        raise AssertionError("the demo's assets must load without the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
