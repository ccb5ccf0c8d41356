"""What the check imports beside Python itself, so that wheels can be taken to a machine without a network."""

from importlib.metadata import PackageNotFoundError, version

NEEDED = {
    "torch": (),
    "numpy": (),
    "numba": ("llvmlite",),
    "pyarrow": (),
    "pydantic": ("pydantic-core", "annotated-types", "typing-inspection", "typing-extensions"),
    "safetensors": (),
    "scipy": (),
    "psutil": (),
    "pyyaml": (),
    "rich": ("markdown-it-py", "mdurl", "pygments"),
}
"""By name in a package index, with what each needs itself; that of torch is torch's own affair."""
OPTIONAL = {"monai": "the loss ssim-l1 is then checked too"}


def lines() -> list[str]:
    """One line a package in the form of a requirements file; as a comment the version that is here, or that it is missing."""
    names = [name for needed, more in NEEDED.items() for name in (needed, *more)]
    found = [f"{name:<20} # {_here(name)}" for name in names]
    return [*found, *(f"# optional: {name:<8} # {_here(name)}; {why}" for name, why in OPTIONAL.items())]


def _here(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
