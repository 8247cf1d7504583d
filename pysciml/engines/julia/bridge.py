"""The fast calls into Julia: plain C functions through ctypes, which lets go of the GIL.

The structures mirror those of ``bridge.jl`` field by field.
"""

from __future__ import annotations

import atexit
import ctypes as ct
import signal
import struct
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from pysciml.engines.julia.startup import Julia, require_this_process, was_forked
from pysciml.errors import EngineError

Result = TypeVar("Result")

OK, FAILED, INTERRUPTED, CALLBACK_FAILED = 0, 1, 2, 3

#: The request of a solve, field by field as in ``bridge.jl``: model, alg, events, dense, adaptive,
#: maxiters, n, np, nc, nsaveat, ntstops, nabstol; the addresses of u0, p, c, saveat, tstops,
#: abstol, du0, differential_vars; t0, t1, reltol, dt, dtmax, dtmin.
REQUEST = struct.Struct("@12q8Q6d")
#: Of the request: the addresses of u0, p and c.
ADDRESSES = struct.Struct("@3Q")
#: The request of a gradient: handle, sensealg, m; the addresses of times, source, cotangents,
#: event_times; abstol, reltol; the addresses of du0, dp, dt0, dtimes, devents.
ADJOINT_REQUEST = struct.Struct("@3q4Q2d5Q")
#: The response: handle, retcode, m, nevents, six counts; the addresses of t, u, source,
#: event_times, event_indices; t_reached; the address of an error's text.
RESPONSE = struct.Struct("@10q5QdQ")


class Response(NamedTuple):
    """What a solve gave back: numbers, and addresses of Julia's arrays."""

    handle: int
    retcode: int
    m: int
    nevents: int
    counts: tuple[int, int, int, int, int, int]
    t: int
    u: int
    source: int
    event_times: int
    event_indices: int
    t_reached: float


class Source(ct.Structure):
    """A kernel's source: text, buffer lengths, constants."""

    _fields_ = [
        ("functions", ct.c_int64),
        ("role", ct.c_int64),
        ("single", ct.c_int64),
        ("text", ct.c_char_p),
        ("length", ct.c_int64),
        ("sizes", ct.c_int64 * 3),
        ("kf", ct.c_void_p),
        ("nkf", ct.c_int64),
        ("ki", ct.c_void_p),
        ("nki", ct.c_int64),
        ("kb", ct.c_void_p),
        ("nkb", ct.c_int64),
    ]


class ForeignSource(ct.Structure):
    """A function called back in Python: its pointer, and the arrays it reads and writes."""

    _fields_ = [
        ("functions", ct.c_int64),
        ("role", ct.c_int64),
        ("single", ct.c_int64),
        ("pointer", ct.c_void_p),
        ("ninputs", ct.c_int64),
        ("inputs", ct.c_void_p * 3),
        ("lengths", ct.c_int64 * 3),
        ("out", ct.c_void_p),
        ("rank", ct.c_int64),
        ("shape", ct.c_int64 * 2),
    ]


class EventSpec(ct.Structure):
    _fields_ = [
        *((k, ct.c_int64) for k in (
            "kind condition affect terminate direction save_before save_after".split()
        )),
        ("times", ct.c_void_p),
        ("ntimes", ct.c_int64),
    ]  # fmt: skip


def address(x: npt.NDArray[Any] | None) -> int:
    """Where an array's memory begins; 0 where there is none."""
    return 0 if x is None or x.size == 0 else x.__array_interface__["data"][0]


def array(pointer: int, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """A copy of Julia's memory as an array."""
    out = np.empty(shape, dtype)
    if pointer and out.size:
        ct.memmove(out.__array_interface__["data"][0], pointer, out.nbytes)
    return out


# What stands behind the signal module, which makes enumerations of it in 15 microseconds.
_signal: Any = sys.modules.get("_signal", signal)
_SIGINT = int(signal.SIGINT)
_MAIN = threading.main_thread().ident
_P, _I = ct.c_void_p, ct.c_int64
_WATCH = ct.CFUNCTYPE(ct.c_int, ct.c_double)

#: Results and arguments of the C functions, by name.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "gc_safe_enter": (ct.c_int8,),
    "gc_safe_leave": (None, ct.c_int8),
    "solve": (ct.c_int, _P, _P),
    "interpolate": (ct.c_int, _I, _P, _I, _I, _P, _P),
    "adjoint": (ct.c_int, _P, _P),
    "ensemble": (ct.c_int, _P, _P, _P),
    "ensemble_adjoint": (ct.c_int, _P, _P),
    "new_members_model": (ct.c_int, _I, _I, _P, ct.c_char_p, _I, _P, _P),
    "solve_members": (ct.c_int, _P, _P),
    "differentiate_members": (ct.c_int, _P, _P),
    "free": (None, _P),
    "drop": (None, _I, _I),
    "set_loader": (None, _P),
    "set_watcher": (None, _P),
    "new_functions": (_I, _I, _I, _I, _I),
    "provide": (ct.c_int, _P, _P),
    "provide_foreign": (ct.c_int, _P, _P),
    "provide_native": (ct.c_int, _I, _I, _I, ct.c_char_p, _I, _P),
    "new_model": (ct.c_int, _I, _I, _P, _P, _P, _P),
    "new_parts": (ct.c_int, _I, _I, _I, _I, _I, _I, _P, _P),
    "new_device_model": (ct.c_int, _I, _I, _I, _I, ct.c_char_p, _I, _P, _P),
    "new_delayed": (ct.c_int, _I, _I, _I, _I, _I, _P, _I, _P, _P),
    "new_noisy": (ct.c_int, _I, _I, _I, _I, _I, _P, _P),
    "new_random": (ct.c_int, _I, _I, _I, _P, _P),
    "solve_noisy": (ct.c_int, _P, ct.c_uint64, _P),
    "solve_boundary": (ct.c_int, _P, _P, _P),
    "mirk_tableau": (ct.c_int, _I, _P, _I, _P, _I, _P),
    "solve_jumps": (ct.c_int, _P, _P, _P),
    "solve_along": (ct.c_int, _P, _P, _P),
    "noise_path": (ct.c_int, _I, _P, _P),
    "new_events": (ct.c_int, _I, _P, _I, _P, _P),
    "set_event": (ct.c_int, _I, _I, _I, _P, _I, _P, _I, _P),
    "object": (ct.c_int, ct.c_char_p, _I, ct.c_char_p, _I, _P, _P),
}

#: SciML's return codes that mean, for whoever solves, what another one means.
_RETCODES = {"DtNaN": "Unstable"}

#: Registries in Julia, for ``drop``.
FUNCTIONS, MODELS, EVENTS, OBJECTS, HANDLES = range(5)


class Bridge:
    """The C functions of a running Julia, and what Python raised inside their calls.

    ``pending`` holds, for each thread, the exceptions of Python code that Julia called back.
    """

    def __init__(self, julia: Julia) -> None:
        addresses = julia.table("PySciML.entry_points()")
        for name, (result, *arguments) in _SIGNATURES.items():
            function = ct.CFUNCTYPE(result, *arguments)(int(addresses[name]))
            setattr(self, f"_{name}", function)
        codes = julia.table("PySciML.retcodes()")
        self.retcodes = {int(k): _RETCODES.get(name, name) for k, name in codes.items()}
        self._local = threading.local()
        self._interrupted = False
        self._watch = _WATCH(self._watched)
        self._set_watcher(ct.cast(self._watch, ct.c_void_p).value)  # type: ignore[attr-defined]
        if threading.get_ident() == _MAIN:
            # The thread that started Julia counts as running Julia code ever after, also while it
            # waits in Python: a collection of garbage that another thread had begun then waited for
            # it for ever. Calls into Julia leave this state and come back to it by themselves. The
            # end of Julia, which juliacall has registered before, comes after this one's.
            state = self._gc_safe_enter()  # type: ignore[attr-defined]
            atexit.register(self._gc_safe_leave, state)  # type: ignore[attr-defined]

    # Julia calls this now and then during a solve, on the solve's thread.
    def _watched(self, t: float) -> int:
        return self.guard(lambda: self._look(t))

    def _look(self, t: float) -> None:
        if self._interrupted and threading.current_thread() is threading.main_thread():
            self._interrupted = False
            self._local.on_interrupt(signal.SIGINT, None)  # the user's handler, or Python's: raises
        report = getattr(self._local, "progress", None)
        if report is not None:
            report(t)

    def interruptibly(
        self, call: Callable[[], Result], progress: Callable[[float], None] | None = None
    ) -> Result:
        """``call()``, which Ctrl-C stops in Julia; ``progress`` is told the time reached.

        A Python signal handler cannot run while Julia does, and one that raised inside a call
        from Julia would lose its exception: so it only leaves word, and ``_look`` raises.
        """
        local = self._local
        local.progress = progress
        handler = _signal.getsignal(_SIGINT) if threading.get_ident() == _MAIN else None
        if not callable(handler):
            try:
                return call()
            finally:
                local.progress = None
        local.on_interrupt, self._interrupted = handler, False
        _signal.signal(_SIGINT, self._leave_word)
        try:
            result = call()
        finally:
            _signal.signal(_SIGINT, handler)
            local.progress = None
        if self._interrupted:
            self._interrupted = False
            handler(_SIGINT, None)
        return result

    def _leave_word(self, number: int, frame: Any) -> None:
        self._interrupted = True

    @property
    def pending(self) -> list[BaseException]:
        if not hasattr(self._local, "pending"):
            self._local.pending = []
        return self._local.pending

    def guard(self, call: Callable[[], None]) -> int:
        """Run Python code inside a call from Julia; an exception is kept for ``check``."""
        try:
            call()
        except BaseException as error:
            self.pending.append(error)
            return 1
        return 0

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that ends in a status and a message; raise what went wrong."""
        require_this_process()
        message = ct.c_void_p()
        status = getattr(self, f"_{name}")(*arguments, ct.addressof(message))
        if status != OK:
            self.fail(status, message.value)

    def drop_with(self, owner: Any, what: int, number: int) -> None:
        """Drop one of Julia's objects once its ``owner`` here is gone."""
        weakref.finalize(owner, self.drop, what, number).atexit = False  # Julia has ended by then

    def number(self, name: str, *arguments: Any) -> int:
        """As ``call``, for one that makes a thing and gives its number."""
        number = ct.c_int64()
        self.call(name, *arguments, ct.addressof(number))
        return number.value

    def solve(
        self,
        request: bytes,
        progress: Callable[[float], None] | None = None,
        by: str = "solve",
        *more: int,
    ) -> Response:
        """Solve; ``request`` is a packed ``REQUEST`` whose arrays the caller keeps alive.

        ``by`` is the C function, ``more`` what it takes besides: ``"solve_noisy"`` a seed (> 0),
        ``"solve_along"`` the address of a path of noise, ``"solve_jumps"`` of a ``JumpRequest``.
        """
        require_this_process()
        memory = ct.create_string_buffer(RESPONSE.size)
        solve: Any = getattr(self, f"_{by}")
        status = self.interruptibly(lambda: solve(request, *more, memory), progress)
        fields = RESPONSE.unpack(memory.raw)
        if status != OK:
            self.fail(status, fields[-1])
        response = Response._make((*fields[:4], fields[4:10], *fields[10:16]))
        if progress is not None:
            progress(response.t_reached)
        return response

    def adjoint(
        self,
        handle: int,
        sensealg: int,
        m: int,
        given: tuple[int, int, int, int],
        tolerances: tuple[float, float],
        to: tuple[int, int, int, int, int],
    ) -> None:
        """Differentiate the solution ``handle`` at ``m`` times; all else are addresses.

        ``given``: of times, source, cotangents and event_times; ``to``: of du0, dp, dt0, dtimes
        and devents, which are filled. 0 for what there is not.
        """
        request = ADJOINT_REQUEST.pack(handle, sensealg, m, *given, *tolerances, *to)
        self.interruptibly(lambda: self.call("adjoint", request))

    def new_functions(self, dae: bool, single: bool, nc: int, driven: bool) -> int:
        require_this_process()
        return int(self._new_functions(dae, single, nc, driven))  # type: ignore[attr-defined]

    def set_loader(self, callback: Any) -> None:
        self._set_loader(ct.cast(callback, ct.c_void_p).value)  # type: ignore[attr-defined]

    def drop(self, registry: int, number: int) -> None:
        if not was_forked():
            self._drop(registry, number)  # type: ignore[attr-defined]

    def fail(self, status: int, error: int | None) -> None:
        """Raise what a call that did not return OK has met."""
        if status == CALLBACK_FAILED and self.pending:
            raise self.pending.pop()
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        text = "unknown error"
        if error:
            text = ct.string_at(error).decode("utf-8", "replace")
            self._free(error)  # type: ignore[attr-defined]
        raise EngineError(f"Julia reports: {text}")
