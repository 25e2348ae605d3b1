"""EinFFT, the channel mixing of SiMBA: a two-layer complex network over the Fourier transform, in blocks of channels.

Patro and Agneeswaran (2024), SiMBA: Simplified Mamba-based Architecture for Vision and Multivariate Time Series,
arXiv 2403.15360. With x [T, D], G blocks of width D / G and complex weights W_i [G, D/G, D/G], b_i [G, D/G]:

    X = FFT(x)                            orthonormal, over the channels, and over time with ``over_time``
    Z = crelu(X W_1 + b_1) W_2 + b_2      block by block; crelu: max(., 0) of real and imaginary part
    y = Re FFT^{-1}(shrink(Z))            shrink: real and imaginary part ``shrink`` closer to 0

The paper transforms over time, too, which needs the whole window and sees the future; that is an option here, which a causal
model refuses. Everything is computed in at least float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.checks import check_divides, check_positive
from zoo.dtypes import accumulator


class EinFFT(nn.Module):
    """The channel mixing of the module docstring.

    Attributes:
      dim: width D of input and output.
      hidden_dim: not used, there is none.
      blocks: blocks G of channels; divides ``dim``.
      over_time: transform over time as well, as the paper does.
      shrink: soft threshold of the spectrum.
      dtype: of the output.
    """

    dim: int
    hidden_dim: int | None = None
    blocks: int = 4
    over_time: bool = False
    shrink: float = 0.01
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        check_positive("blocks", self.blocks)
        check_divides("blocks", self.blocks, "dim", self.dim)
        axes = (1, 2) if self.over_time else (2,)
        z = jnp.fft.fftn(x.astype(accumulator(x.dtype)), axes=axes, norm="ortho")
        z = z.reshape(*x.shape[:2], self.blocks, -1)
        width = z.shape[-1]
        for layer in (1, 2):
            shapes = {"kernel": (self.blocks, width, width), "bias": (self.blocks, width)}
            real, imaginary = (
                {
                    name: self.param(f"{part}_{name}_{layer}", nn.initializers.normal(0.02), shape)
                    for name, shape in shapes.items()
                }
                for part in ("real", "imaginary")
            )
            kernel, bias = (jax.lax.complex(real[name], imaginary[name]) for name in ("kernel", "bias"))
            z = jnp.einsum("btgi,gio->btgo", z, kernel) + bias
            act = jax.nn.relu if layer == 1 else self._shrunk
            z = jax.lax.complex(act(z.real), act(z.imag))
        y = jnp.fft.ifftn(z.reshape(x.shape), axes=axes, norm="ortho").real
        return y.astype(self.dtype)

    def _shrunk(self, a):
        return jnp.sign(a) * jax.nn.relu(jnp.abs(a) - self.shrink)
