"""Builds `fastxfer._C`: the core once for every instruction set of the processor, and for CUDA where nvcc is found.

FASTXFER_CUDA=0|1          leave CUDA out, or insist on it (default: as nvcc is found; no GPU is needed to build)
FASTXFER_CUDA_ARCHS        architectures, "80;90" by default
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
# No -ffast-math: infinities and NaN keep their meaning and additions their order. `-fno-trapping-math` lets both sides of
# a choice be computed, `-ffp-contract=fast` lets a·b + c be one instruction.
FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-psabi",
]
X86 = platform.machine().lower() in ("x86_64", "amd64")
# name -> (bytes of a vector register, flags)
INSTRUCTION_SETS = {"baseline": (16, [])}
if X86:
    INSTRUCTION_SETS |= {"avx2": (32, ["-march=x86-64-v3"]), "avx512": (64, ["-march=x86-64-v4"])}


def cuda_compiler() -> str | None:
    """nvcc, or None where CUDA is not to be built."""
    wanted = os.environ.get("FASTXFER_CUDA", "").strip()
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    found = shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))
    if wanted == "1" and found is None:
        raise SystemExit("FASTXFER_CUDA=1, but nvcc is not on PATH nor under CUDA_HOME")
    return found


class Build(build_ext):
    """Compiles what has changed since the last time, in parallel; several objects can come from one source."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        compiler = os.environ.get("CXX", "g++")
        include = ["-I" + path for path in (*self.compiler.include_dirs, *self.include_dirs, pybind11.get_include())]
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)

        jobs: dict[Path, list[str]] = {}
        for name, (register_bytes, flags) in INSTRUCTION_SETS.items():
            defines = [
                f"-DFX_NAMESPACE=fastxfer_{name}",
                f"-DFX_REGISTER_BYTES={register_bytes}",
                f"-DFX_KERNELS={name}",
            ]
            source = str(CSRC / "cpu" / "kernels.cpp")
            jobs[folder / f"kernels_{name}.o"] = [compiler, *FLAGS, *flags, *defines, "-c", source]
        nvcc = cuda_compiler()
        cuda = ["-DFX_CUDA"] if nvcc else []
        x86 = ["-DFX_X86_KERNELS"] if X86 else []
        jobs[folder / "run.o"] = [compiler, *FLAGS, *x86, "-c", str(CSRC / "cpu" / "run.cpp")]
        # Code of pybind11 is not worth the optimiser's time.
        bindings = [compiler, *FLAGS, "-O1", *include, *cuda, "-c", str(CSRC / "bindings.cpp")]
        jobs[folder / "bindings.o"] = bindings
        link = [compiler, "-shared", "-fopenmp"]
        if nvcc:
            archs = [a for a in os.environ.get("FASTXFER_CUDA_ARCHS", "80;90").replace(",", ";").split(";") if a]
            code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs[:-1]]
            # PTX of the last, for whatever comes after it.
            code.append(f"-gencode=arch=compute_{archs[-1]},code=[sm_{archs[-1]},compute_{archs[-1]}]")
            jobs[folder / "cuda.o"] = [
                nvcc, "-std=c++20", "-O3", *code, "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall", "--threads=0",
                "-c", str(CSRC / "cuda" / "kernels.cu"),
            ]  # fmt: skip
            # nvcc links, since it alone knows where its runtime lies: the one on PATH may be a wrapper.
            link = [nvcc, "-shared", "--cudart=static", "-Xcompiler=-fopenmp"]

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            done = list(pool.map(lambda job: self.compile(*job), jobs.items()))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if any(done) or not target.exists():
            self.spawn([*link, *map(str, jobs), "-o", str(target)])

    def compile(self, object_file: Path, command: list[str]) -> bool:
        """Compile unless the object is newer than all it was made from, by the same command; whether it was compiled."""
        depends, record = object_file.with_suffix(".d"), object_file.with_suffix(".command")
        line = " ".join(command)
        if object_file.exists() and depends.exists() and record.exists() and record.read_text() == line:
            made = object_file.stat().st_mtime
            files = depends.read_text().replace("\\\n", " ").split(":", 1)[1].split()
            if all(Path(f).exists() and Path(f).stat().st_mtime <= made for f in files):
                return False
        record.unlink(missing_ok=True)
        print(line, flush=True)
        subprocess.run([*command, "-MD", "-MF", str(depends), "-o", str(object_file)], check=True)
        record.write_text(line)
        return True


sources = sorted(str(p) for p in CSRC.rglob("*") if p.suffix in (".cpp", ".h", ".cu", ".cuh"))
setup(ext_modules=[Extension("fastxfer._C", sources)], cmdclass={"build_ext": Build})
