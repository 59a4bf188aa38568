"""Builds the compiled ops: csrc -> groundingml/ops/_library.so and _build.*.so. Metadata: pyproject.toml.

Environment variables:
    CXX                        the C++ compiler (default: g++, c++ or clang++)
    CUDA_HOME                  where nvcc is (default: /usr/local/cuda, then PATH)
    GROUNDINGML_CUDA_ARCHS     compute capabilities, e.g. "8.0;9.0+PTX" (default: these, if nvcc knows them)
    GROUNDINGML_NO_CUDA=1      build the CPU kernels only, even where nvcc is found
    GROUNDINGML_NO_NATIVE=1    install without compiled ops
    MAX_JOBS                   parallel compiler runs

Objects stay in build/native/, so a second build of the same takes no time. Reasons: docs/custom_op.md.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
LIBRARY = "groundingml.ops._library"
BUILD_MODULE = "groundingml.ops._build"

# Everything newer than 2.10 is left out of PyTorch's headers, so that one binary serves 2.10 and later.
TORCH_TARGET_VERSION = "0x020a000000000000"

CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
CXX_FLAGS += [
    "-Wall",
    "-Wextra",
    "-Wno-maybe-uninitialized",
]  # the last: false alarms in GCC 12's AVX512 header
# Each instruction set gets its own translation unit; see csrc/msda/cpu/kernels.inc.
OPS = ("msda", "deform_conv")
X86_UNITS = {
    f"{op}/cpu/kernels_{name}.cpp": flags
    for op in OPS
    for name, flags in {
        "avx2": ["-march=x86-64-v3"],
        "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    }.items()
}
DEFAULT_CUDA_ARCHS = "8.0;9.0+PTX"


class BuildError(SystemExit):
    """Ends the build with a message instead of a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(f"\ngroundingml: {message}\n")


def asked_for(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def first_line(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def find_compiler() -> list[str]:
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError(
        "no C++ compiler found. Install one (Debian, Ubuntu: apt install g++), name it by CXX, "
        "or install without compiled ops: GROUNDINGML_NO_NATIVE=1"
    )


def find_ninja() -> str:
    if shutil.which("ninja"):
        return "ninja"
    try:
        import ninja
    except ImportError:
        raise BuildError("ninja is missing: pip install ninja") from None
    return str(Path(ninja.BIN_DIR) / "ninja")


@dataclass
class Cuda:
    """nvcc and the architectures to compile for."""

    nvcc: str
    version: str
    archs: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)


def find_cuda() -> Cuda | None:
    if asked_for("GROUNDINGML_NO_CUDA"):
        return None
    homes = [os.environ["CUDA_HOME"]] if os.environ.get("CUDA_HOME") else ["/usr/local/cuda"]
    nvcc = next((path for home in homes if (path := shutil.which(f"{home}/bin/nvcc"))), None) or shutil.which(
        "nvcc"
    )
    if nvcc is None:
        return None
    try:
        version = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        known = subprocess.run(
            [nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(
            f"{nvcc} does not run ({error}). Set CUDA_HOME to a working toolkit, or "
            "GROUNDINGML_NO_CUDA=1 to build the CPU kernels only"
        ) from None
    cuda = Cuda(nvcc, next((line for line in version if "release" in line), version[-1]))
    chosen = os.environ.get("GROUNDINGML_CUDA_ARCHS")
    for arch in (chosen or DEFAULT_CUDA_ARCHS).replace(",", ";").replace(" ", ";").split(";"):
        number = arch.removesuffix("+PTX").replace(".", "")
        if not number:
            continue
        if f"compute_{number}" not in known:
            if chosen:
                raise BuildError(
                    f"GROUNDINGML_CUDA_ARCHS has {arch!r}, but {nvcc} knows only {' '.join(known)}"
                )
            continue
        cuda.archs.append(arch)
        cuda.flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if arch.endswith("+PTX"):
            cuda.flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return cuda


def ninja_escape(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def link_folder(link: Path, target: Path) -> None:
    """A fixed name for a folder that moves with each isolated build, so that the commands stay the same."""
    if link.is_symlink() and link.resolve() == target.resolve():
        return
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def replace_file(source: Path, target: Path) -> None:
    """Atomic: a process that has the old file loaded keeps it, and no process sees half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, temporary)
    shutil.copymode(source, temporary)
    temporary.replace(target)


def write_ninja_file(folder: Path) -> None:
    """Writes build.ninja and build_info.h into `folder`; paths in them are relative to it."""
    import pybind11
    import torch

    compiler, cuda = find_compiler(), find_cuda()
    try:
        compiler_version = first_line([*compiler, "--version"])
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"the C++ compiler {shlex.join(compiler)} does not run: {error}") from None
    torch_folder = Path(torch.__file__).parent
    link_folder(folder / "torch", torch_folder)
    link_folder(folder / "pybind11", Path(pybind11.get_include()))

    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    sources = ["library.cpp", "msda/cpu/capability.cpp"]
    sources += [f"{op}/cpu/{name}.cpp" for op in OPS for name in ("register", "kernels_generic")]
    sources += list(X86_UNITS) if is_x86 else []
    cuda_sources = sorted(str(path.relative_to(CSRC)) for path in CSRC.glob("*/cuda/*.cu")) if cuda else []

    info = {
        "COMPILER": compiler_version,
        "FLAGS": shlex.join(CXX_FLAGS),
        "TORCH": torch.__version__,
        "NVCC": cuda.version if cuda else "",
        "CUDA_ARCHS": ";".join(cuda.archs) if cuda else "",
    }
    quoted = {name: text.replace("\\", "\\\\").replace('"', '\\"') for name, text in info.items()}
    write_if_changed(
        folder / "build_info.h",
        "".join(f'#define GROUNDINGML_{name} "{text}"\n' for name, text in quoted.items()),
    )

    torch_flags = ["-isystem", "torch/include", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    python_flags = ["-isystem", sysconfig.get_path("include"), "-isystem", "pybind11", "-I."]
    link_flags = ["-shared", "-Ltorch/lib", "-ltorch_cpu"]
    linker_flags = ["-soname,_library.so", "--no-undefined", "--as-needed", "--exclude-libs,ALL"]
    if cuda:
        host = ["-ccbin", shlex.join(compiler)] if os.environ.get("CXX") else []
        nvcc = [cuda.nvcc, *host]
        warnings = ["-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden"]
        nvcc_flags = ["-std=c++17", "-O3", *cuda.flags, *(f"-Xcompiler={flag}" for flag in warnings)]
        link = [*nvcc, "$in", "-o", "$out", "-cudart", "static", *link_flags]
        link += [f"-Xlinker={flag.replace(',', '=', 1)}" for flag in linker_flags]
    else:
        nvcc, nvcc_flags = [], []
        link = [*compiler, "$in", "-o", "$out", *link_flags, *(f"-Wl,{flag}" for flag in linker_flags)]

    lines = [
        "ninja_required_version = 1.5",
        "rule cxx",
        f"  command = {shlex.join([*compiler, *CXX_FLAGS])} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc",
        f"  command = {shlex.join([*nvcc, *nvcc_flags])} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link_library",
        f"  command = {' '.join(word if word in ('$in', '$out') else shlex.quote(word) for word in link)}",
        "rule link_module",
        f"  command = {shlex.join(compiler)} -shared $in -L. -l:_library.so '-Wl,-rpath,$$ORIGIN' -o $out",
    ]
    objects = []
    for source in [*sources, *cuda_sources]:
        rule = "nvcc" if source.endswith(".cu") else "cxx"
        flags = torch_flags + X86_UNITS.get(source, [])
        objects.append(source.replace("/", "_") + ".o")
        lines += [
            f"build {objects[-1]}: {rule} {ninja_escape(str(CSRC / source))}",
            f"  flags = {shlex.join(flags)}",
        ]
    lines += [
        f"build _library.so: link_library {' '.join(objects)}",
        f"build build_info.o: cxx {ninja_escape(str(CSRC / 'build_info.cpp'))}",
        f"  flags = {shlex.join(python_flags)}",
        "build _build.so: link_module build_info.o | _library.so",
        "default _library.so _build.so",
    ]
    write_if_changed(folder / "build.ninja", "\n".join(lines) + "\n")


def run_ninja(folder: Path) -> None:
    command = [find_ninja(), "-C", str(folder)]
    if os.environ.get("MAX_JOBS"):
        command += ["-j", os.environ["MAX_JOBS"]]
    if subprocess.run(command, check=False).returncode != 0:
        raise BuildError(
            "compiling the ops failed; the compiler's own message is above. If CUDA is the trouble, "
            "GROUNDINGML_NO_CUDA=1 builds the CPU kernels only; GROUNDINGML_NO_NATIVE=1 installs without any"
        )


class BuildOps(build_ext):
    """Runs ninja once for both files, then puts them where setuptools wants them."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.rpartition(".")[2] == "_library":
            return (
                fullname.replace(".", os.sep) + ".so"
            )  # loaded by torch.ops.load_library, not imported by Python
        return str(super().get_ext_filename(fullname))

    def run(self) -> None:
        import torch

        key = f"{sys.implementation.cache_tag}-{platform.machine()}-torch{torch.__version__}"
        folder = ROOT / "build" / "native" / key
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            write_ninja_file(folder)
            run_ninja(folder)
            for extension in self.extensions:
                built = folder / (extension.name.rpartition(".")[2] + ".so")
                base = ROOT if self.inplace else Path(self.build_lib)
                replace_file(built, base / self.get_ext_filename(extension.name))


def extensions() -> list[Extension]:
    if asked_for("GROUNDINGML_NO_NATIVE"):
        return []
    files = sorted(str(path.relative_to(ROOT)) for path in CSRC.rglob("*") if path.is_file())
    # Both are built from the same tree by BuildOps; `depends` is for the source distribution.
    return [Extension(LIBRARY, sources=[], depends=files), Extension(BUILD_MODULE, sources=[], depends=files)]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildOps})
