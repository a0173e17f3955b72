"""Makes `tritonserver` a command of the serving environment.

Run with that environment's Python; needs nothing of ours. The nvidia-pytriton wheel holds a real tritonserver with
its Python backend, but not where the server looks for it. This lays the backend folder out under
`share/slipway/backends` and writes `bin/tritonserver`, which sets the paths and runs the server
under `supervise.py`, which lets streams finish on SIGTERM.

    .venv-serve/bin/python pipeline/serving_environment.py
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path

BACKEND_FILES = ("libtriton_python.so", "triton_python_backend_utils.py")
SUPERVISOR = "supervise.py"
STUB = "triton_python_backend_stub"

WRAPPER = """#!/bin/sh
# tritonserver of this environment, written by pipeline/serving_environment.py. Options given here come last and win.
# It listens on this machine only, unless told otherwise by --http-address, --grpc-address and --metrics-address.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
site={site}
export PATH="$here:$PATH"
export PYTHONPATH="$site"
export LD_LIBRARY_PATH="$site/nvidia_pytriton.libs:{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
exec "$here/python" "$here/../share/slipway/supervise.py" "$site/pytriton/tritonserver/bin/tritonserver" \\
    --backend-directory "$here/../share/slipway/backends" --disable-auto-complete-config \\
    --http-address 127.0.0.1 --grpc-address 127.0.0.1 --metrics-address 127.0.0.1 "$@"
"""


def lay_out(prefix: Path, site: Path) -> Path:
    """Writes backend folder and wrapper below `prefix`; gives the wrapper. Raises SystemExit with the reason."""
    check_numpy()
    server = site / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / STUB
    if not stub.is_file():
        raise SystemExit(f"nvidia-pytriton has no Python backend for Python {version}; use Python 3.11")
    backend = prefix / "share" / "slipway" / "backends" / "python"
    backend.mkdir(parents=True, exist_ok=True)
    for source in (*(server / "backends" / "python" / name for name in BACKEND_FILES), stub):
        shutil.copyfile(source, backend / source.name)
    (backend / STUB).chmod(0o755)
    shutil.copyfile(Path(__file__).with_name(SUPERVISOR), prefix / "share" / "slipway" / SUPERVISOR)
    wrapper = prefix / "bin" / "tritonserver"
    wrapper.write_text(
        WRAPPER.format(site=f"'{site}'", libraries=sysconfig.get_config_var("LIBDIR")), encoding="utf-8"
    )
    wrapper.chmod(0o755)
    return wrapper


def check_numpy() -> None:
    """This server's Python backend reads numpy 1 arrays; with numpy 2 every tensor arrives empty."""
    version = importlib.metadata.version("numpy")
    if int(version.split(".")[0]) >= 2:
        raise SystemExit(
            f"numpy {version} is installed here; tritonserver 2.51 needs numpy 1: install 'numpy<2'"
        )


def main() -> None:
    """Lays out the environment of the running Python."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"nvidia-pytriton is not installed for {sys.executable}; install requirements/serve.txt"
        )
    site = Path(spec.origin).parent.parent
    print(lay_out(Path(sys.prefix), site))


if __name__ == "__main__":
    main()
