"""The kernels in Triton: raw logits → normalisers, sums over classes, gradients.

Same functions, same arguments and same meaning as in `backends.torch`. A file a kernel, with its
launch; block sizes and warps are chosen in `launch`. `small_head` has the functions that take
these' place for small heads (see `core.chunks`). Without a GPU the kernels run under
`TRITON_INTERPRET=1` (set before the import).

One program reads one block of columns of one row of logits. The grid is (rows, blocks of columns):
rows lie on axis 0 (the other axes end at 65535), and a few rows of a large vocabulary make as many
programs as many rows of a small one. What a row needs from all of its blocks goes through a small
fp32 buffer, `partial`, with one number a block and row, summed afterwards in a fixed order: no
atomics, so the same input gives the same bits.

Row offsets are int64 (rows × V passes 2³¹ at 14 k rows of a 152 k vocabulary). What changes from
call to call is not specialised, so that it does not compile a kernel anew. Row strides and widths
are: a width divisible by 16 lets loads be 128 bits wide, and so does padding (`core.buffers`).
"""

from . import small_head
from .class_sums_kernel import class_sums
from .gradient_kernel import gradient
from .normalisers_kernel import normalisers

__all__ = ["class_sums", "gradient", "normalisers", "small_head"]
