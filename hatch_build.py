"""Builds the native kernels with the package; without a compiler the package installs without."""

import sysconfig
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("kernels") / "gptoss_kernels" / "native"


class NativeKernels(BuildHookInterface):
    """Adds `_native.so` to the wheel, whose tag then names the platform but no Python version."""

    def initialize(self, version: str, build_data: dict) -> None:
        spec = spec_from_file_location("native_build", Path(self.root) / NATIVE / "build.py")
        assert spec and spec.loader
        native = module_from_spec(spec)
        spec.loader.exec_module(native)
        try:
            library = native.build()
        except native.BuildError as error:
            self.app.display_warning(f"native kernels not built: {error}")
            return
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["artifacts"].append(f"/{NATIVE.as_posix()}/{library.name}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"
