"""Where torch's modes meet a solve: some are left while it runs, transforms are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from pysciml.errors import InputError

__all__ = ["leave_compiler", "plain_mode", "refuse_transforms", "resume_compiler"]

_eval_frame = torch._C._dynamo.eval_frame
_autograd: Any = torch._C._autograd
#: The innermost hooks on saved tensors, or None. torch 2.6 does not tell: there they stay.
_top_hooks = getattr(_autograd, "_top_saved_tensors_default_hooks", lambda ignore_tracing: None)
_PLAIN = contextlib.nullcontext()


def plain_mode() -> contextlib.AbstractContextManager[None]:
    """Neither autocast nor hooks on saved tensors.

    A solver's error control cannot live with a function in half precision, and torch.func, which
    derives the kernels, does not work under the hooks that activation checkpointing sets.
    """
    modes = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    if not modes and _top_hooks(True) is None:
        return _PLAIN
    return _without_modes()


@contextlib.contextmanager
def _without_modes() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        while (hooks := _top_hooks(True)) is not None:
            _autograd._pop_saved_tensors_default_hooks()
            stack.callback(_autograd._push_saved_tensors_default_hooks, *hooks)
        yield


def leave_compiler() -> Any:
    """Keep torch.compile from tracing what follows; give the result to :func:`resume_compiler`.

    As ``torch.compiler.disable``, which costs the import of torch's compiler.
    """
    return _eval_frame.set_eval_frame(None)


def resume_compiler(before: Any) -> None:
    _eval_frame.set_eval_frame(before)


def refuse_transforms(*trees: Any) -> None:
    """Raise InputError inside ``torch.func``'s transforms, and for tensors of forward-mode AD.

    A solve would see the values only: its derivative would be lost without a word.
    """
    if torch._C._functorch.maybe_current_level() is not None:
        raise InputError(
            "A problem was given to pysciml inside a transform of torch.func (vmap, grad, jacrev, "
            "jvp, ...), but a solve cannot be transformed: for many solutions at once give u0 a "
            "batch dimension, and for gradients use backward() or torch.autograd.grad."
        )
    if forward_ad._current_level >= 0 and any(
        isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None
        for x in pytree.tree_leaves(trees)
    ):
        raise InputError(
            "A tensor with a forward-mode tangent (torch.autograd.forward_ad) was given to "
            "pysciml, but a solve has gradients in reverse mode only: use torch.autograd.grad "
            "(with sensealg=pysciml.ForwardSensitivity() for few parameters)."
        )
