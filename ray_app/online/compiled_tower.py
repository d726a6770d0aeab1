"""The query tower compiled for this machine's CPU: a file of native code, made once and loaded in milliseconds.

The language model's numbers are bfloat16, pooling and projection are float32. Measured with MiniLM on one thread of a
CPU that multiplies bfloat16 (benchmarks/bench_query_encoders.py): faster than onnxruntime in 8 bits, and a hundred times
closer to float32.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from ray_app.base.cache_folder import require_ours
from ray_app.base.errors import UserError, one_line

_NICE = 10  # the compiler runs at lower priority than a replica that serves
_LIMIT_SEC = 600


def compile_tower(folder: Path, path: Path, threads: int) -> None:
    """Write the query tower of the student in `folder` as `path` (.pt2), in a process of its own.

    It takes half a minute of Python and C++, which would hold up the requests of the replica that asks for it.

    Args:
        path: To be written, in a temporary folder of its own: the compiler's other files stay there.

    Raises:
        UserError: there is no C++ compiler, or the model or CPU cannot be compiled for.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch chooses
    if shutil.which(compiler) is None:
        raise UserError(f"the query tower cannot be compiled here: there is no C++ compiler {compiler!r}")
    command = [sys.executable, "-m", "ray_app.online.compiled_tower", str(folder), str(path), str(threads)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    # torch would put what it compiles and loads into folders of /tmp whose names can be guessed.
    env |= {"TMPDIR": str(path.parent), "TORCHINDUCTOR_CACHE_DIR": str(path.parent / "inductor")}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_LIMIT_SEC, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"compiling the query tower took over {_LIMIT_SEC} s") from None
    if done.returncode != 0 or not path.exists():
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"the query tower cannot be compiled here: {said[-1][:300]}")


class CompiledTower:
    """A compiled tower in this process; any thread may call it, and others run Python meanwhile.

    torch's own loader (`torch._inductor.aoti_load_package`) keeps the interpreter's lock while the code runs (torch 2.13,
    measured: no other thread moves for 20 ms of a batch), so a replica could not read or answer a request meanwhile. The code
    has a C interface (torch/csrc/inductor/aoti_runtime/interface.h), and ctypes lets go of that lock.
    """

    def __init__(self, path: Path) -> None:
        """Load the code, which is the process's own from then on.

        Raises:
            UserError: somebody else could have written it.
            RuntimeError: it cannot be loaded.
        """
        import torch

        require_ours(path)
        self._torch = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        with tempfile.TemporaryDirectory(dir=path.parent) as temp, zipfile.ZipFile(path) as package:
            (code,) = (name for name in package.namelist() if name.endswith(".so"))
            self._code = ctypes.CDLL(package.extract(code, temp))  # stays mapped when the file is gone
        self._model = ctypes.c_void_p()
        create = self._code.AOTInductorModelContainerCreateWithDevice
        _check(create(ctypes.byref(self._model), ctypes.c_size_t(1), b"cpu", None))

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Vectors (B, dim) float32 of token ids and mask, (B, T) int64."""
        arrays = [np.ascontiguousarray(array, np.int64) for array in (input_ids, attention_mask)]
        inputs = (ctypes.c_void_p * 2)(*(self._tensor_over(array) for array in arrays))
        output = ctypes.c_void_p()
        run = self._code.AOTInductorModelContainerRun  # takes the inputs' handles, and gives the output's
        _check(run(self._model, inputs, ctypes.c_size_t(2), ctypes.byref(output), ctypes.c_size_t(1), None, None))
        try:
            return self._copied(output, len(input_ids))
        finally:
            _check(self._torch.aoti_torch_delete_tensor_object(output))

    def _tensor_over(self, array: np.ndarray) -> int | None:
        sizes = (ctypes.c_int64 * 2)(*array.shape)
        strides = (ctypes.c_int64 * 2)(array.shape[1], 1)
        cpu, kind = self._torch.aoti_torch_device_type_cpu(), self._torch.aoti_torch_dtype_int64()
        handle = ctypes.c_void_p()
        create, offset, device = self._torch.aoti_torch_create_tensor_from_blob, ctypes.c_int64(0), ctypes.c_int32(0)
        data, dims = ctypes.c_void_p(array.ctypes.data), ctypes.c_int64(2)
        _check(create(data, dims, sizes, strides, offset, kind, cpu, device, ctypes.byref(handle)))
        return handle.value

    def _copied(self, tensor: ctypes.c_void_p, num_rows: int) -> np.ndarray:
        data, count = ctypes.c_void_p(), ctypes.c_int64()
        _check(self._torch.aoti_torch_get_data_ptr(tensor, ctypes.byref(data)))
        _check(self._torch.aoti_torch_get_numel(tensor, ctypes.byref(count)))
        numbers = ctypes.cast(data, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(numbers, (num_rows, count.value // num_rows)).copy()


def _check(code: int) -> None:
    if code != 0:
        raise RuntimeError(f"compiled code failed with {code}; torch wrote why to stderr")


def _compile(folder: Path, path: Path, threads: int) -> None:
    import torch
    import torch._inductor
    from torch._inductor.utils import fresh_cache

    from ray_app.models.bi_encoder import BiEncoder
    from ray_app.models.onnx_export import query_tower, token_batch

    torch.set_num_threads(threads)  # the number is written into the code
    student = BiEncoder.from_pretrained(folder).eval()
    student.tower("query").backbone.bfloat16()
    sizes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    with torch.no_grad(), fresh_cache():
        program = torch.export.export(
            query_tower(student), token_batch(student, 3, 7), dynamic_shapes=(sizes, sizes), strict=False
        )
        # Freezing lays the weights out as the matrix products of this CPU want them.
        settings = {"freezing": True}
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


def main() -> None:
    """Arguments of `compile_tower`; an error is one line, the last of stderr."""
    os.nice(_NICE)
    try:
        _compile(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent process tells it
        sys.exit(f"{type(error).__name__}: {one_line(error)}")


if __name__ == "__main__":
    main()
