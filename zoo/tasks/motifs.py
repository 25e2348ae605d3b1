"""Motif classification: which of a few short patterns is hidden in a noisy series, and it may stand anywhere."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task


@dataclasses.dataclass(frozen=True)
class MotifClassification(Task):
    """Gaussian noise of unit variance with one of ``num_classes`` motifs added at a random place; the class is which.

    The motifs [num_classes, motif_length, channels] are Gaussian with standard deviation ``amplitude``, drawn once from
    ``motif_seed``. Every step shows the last ``frames`` steps of the series side by side (zeros before the start).

    Batch: ``inputs`` float32 [length, frames * channels], newest step last; ``targets`` int32 class.

    Attributes:
      num_classes: number of motifs.
      length: steps of the series.
      channels: channels of the series.
      motif_length: steps of a motif.
      amplitude: standard deviation of the motifs' values.
      frames: steps that are shown at once.
      motif_seed: which motifs.
    """

    num_classes: int = 4
    length: int = 48
    channels: int = 2
    motif_length: int = 6
    amplitude: float = 1.5
    frames: int = 6
    motif_seed: int = 0

    def __post_init__(self):
        for name in ("num_classes", "length", "channels", "motif_length", "frames"):
            check_positive(name, getattr(self, name))
        if self.motif_length > self.length:
            raise ValueError(f"motif_length={self.motif_length} does not fit into length={self.length}")

    def motifs(self) -> Float[Array, "K M C"]:
        """The patterns of the classes."""
        shape = (self.num_classes, self.motif_length, self.channels)
        return self.amplitude * jax.random.normal(jax.random.key(self.motif_seed), shape)

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_class, key_place, key_noise = jax.random.split(key, 3)
        label = jax.random.randint(key_class, (), 0, self.num_classes)
        place = jax.random.randint(key_place, (), 0, self.length - self.motif_length + 1)
        series = jax.random.normal(key_noise, (self.length, self.channels))
        motif = jnp.zeros_like(series)
        motif = jax.lax.dynamic_update_slice_in_dim(motif, self.motifs()[label], place, axis=0)
        series = jnp.pad(series + motif, ((self.frames - 1, 0), (0, 0)))
        shown = [series[i : i + self.length] for i in range(self.frames)]
        return Batch(inputs=jnp.concatenate(shown, axis=-1), targets=label)

    def best_logits(self, inputs: Float[Array, "B T F"]) -> Float[Array, "B K"]:
        """Log-likelihood of every class, up to a constant: what an observer who knows the motifs would say.

        With series x and a motif m at place p, log N(x - m_p) = <x, m_p> - |m|^2 / 2 + const; places are summed over.
        """
        series, motifs = inputs[..., -self.channels :], self.motifs()
        places = self.length - self.motif_length + 1
        pieces = jnp.stack([series[:, i : i + places] for i in range(self.motif_length)], axis=2)  # [B, P, M, C]
        match = jnp.einsum("bpmc,kmc->bkp", pieces, motifs) - jnp.sum(motifs**2, axis=(1, 2))[:, None] / 2
        return jax.nn.logsumexp(match, axis=-1)
