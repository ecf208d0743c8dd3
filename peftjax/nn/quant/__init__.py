"""Quantised kernels: nodes that hold a weight in 4 or 8 bits, and the products with them.

    params["blocks"]["attn"]["q"]["kernel"] = quantise(W, "nf4")      every method trains beside it, none trains it
"""

from peftjax.nn.quant.affine4 import Affine4
from peftjax.nn.quant.float8 import Float8
from peftjax.nn.quant.int8 import Int8
from peftjax.nn.quant.nf4 import NF4
from peftjax.nn.quant.quantised import Quantised
from peftjax.nn.quant.scheme import Scheme, quantise

__all__ = ["NF4", "Affine4", "Float8", "Int8", "Quantised", "Scheme", "quantise"]
