"""What every kind of sublayer can be asked. Knows no torch.

A sublayer reads the residual stream (`hidden_size` wide) through a norm of its own and adds to it. In some families there is a
norm of what it adds, besides the first or in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from nemotron_dpo.policy.architecture import Architecture
    from nemotron_dpo.policy.layout import Layout

FLOAT_BYTES = 4


class PairTokens(Protocol):
    """The tokens of a pair, or of many pairs in arrays of one number each."""

    @property
    def all(self) -> Any:
        """Its tokens in a packed row, the shared prompt once."""

    @property
    def responses(self) -> Any:
        """Those of both responses."""

    def meetings(self, window: int | None = None) -> Any:
        """Queries times the keys they see: causal, both responses after the one prompt, of each path the last `window`."""


@dataclass(frozen=True)
class Linear:
    """A linear layer that adapters can be put beside.

    name: its module's within the layer; `{}` stands for the number of an expert. copies: experts that have one of their own.
    met: those of them that one token goes through.
    """

    name: str
    inputs: int
    outputs: int
    copies: int = 1
    met: int = 1

    @property
    def size(self) -> int:
        """Elements of its weight."""
        return self.inputs * self.outputs

    @property
    def names(self) -> list[str]:
        """The names of all its copies within the layer."""
        return [self.name.format(copy) for copy in range(self.copies)]


@dataclass(frozen=True)
class Parameters:
    """How many parameters a sublayer has, by how ranks divide them.

    split: divided by tensor parallelism. whole: held by every tensor-parallel rank; `router` of them are a router's. experts:
    divided by expert parallelism, of which one token meets `experts_met`.
    """

    split: int = 0
    whole: int = 0
    router: int = 0
    experts: int = 0
    experts_met: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.split + self.whole + self.experts

    @property
    def met(self) -> int:
        """Those that one token meets."""
        return self.split + self.whole + self.experts_met


@dataclass(frozen=True)
class Kept:
    """Bytes a token that a rank keeps of a sublayer for its backward pass.

    entering: what is around the sublayer's own computation: the stream, its norms and what they divided by. own: the rest.
    is_scattered: whether its computation makes and frees other tensors of such sizes in between, so that a heap grows by more.
    """

    entering: float
    own: float
    is_scattered: bool = True

    @property
    def total(self) -> float:
        """Both."""
        return self.entering + self.own


class Sublayer(Protocol):
    """One kind of sublayer, with its sizes. Equal sublayers are equal objects."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the names of its parameters begin with, within the layer."""
        ...

    @property
    def module(self) -> str:
        """What megatron-core's recompute_modules call it."""
        ...

    def linears(self, architecture: Architecture) -> tuple[Linear, ...]:
        """Its linear layers."""
        ...

    def parameters(self, architecture: Architecture) -> Parameters:
        """Its parameters, its norm's among them."""
        ...

    def weights_met(self, architecture: Architecture) -> int:
        """Elements of the matrices that each token is multiplied with."""
        ...

    def mixing_flops(self, pair: PairTokens) -> tuple[Any, Any]:
        """FLOPs of a pair between its tokens, where no weight takes part: (forward, backward)."""
        ...

    def kept(self, architecture: Architecture, layout: Layout, width: int) -> Kept:
        """What a rank keeps for the backward pass; an activation has `width` bytes."""
        ...

    def beside(self, architecture: Architecture, layout: Layout, width: int) -> float:
        """Bytes a token that its backward pass takes beside what is kept, at most."""
        ...

    def undivided(self, layout: Layout) -> Iterator[tuple[str, int, int]]:
        """What must divide over ranks: (what it is called, how many there are, how many ranks). Raises UserError."""
        ...

    def config(self) -> dict[str, Any]:
        """The fields of megatron-core's TransformerConfig that say what it is; all layers of a model share one config."""
        ...

    def spec(self, config: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """Its fields of megatron-core's TransformerLayerSubmodules.

        And how a checkpoint names what is saved by another name than its module has: {beginning of the name: of the key}.
        """
        ...


def norm_parameters(architecture: Architecture) -> int:
    """Parameters of one norm over the stream."""
    return architecture.hidden_size * (2 if architecture.normalization == "LayerNorm" else 1)


def entering_bytes(
    architecture: Architecture, layout: Layout, width: int, *, before: bool = True, after: bool = False
) -> float:
    """Bytes a token of the stream that enters a sublayer, and for its norms of what is kept of them.

    That is what comes out of the norm `before` it and what goes into the one `after` it, and in float32 what each divided by.
    """
    norms = before + after
    return width * (1 + norms) * architecture.hidden_size / (layout.tensor if layout.sequence else 1) + FLOAT_BYTES * norms
