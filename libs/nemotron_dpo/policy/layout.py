"""How processes share one copy of a policy and its tokens. Knows no torch: what a run costs is asked before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from nemotron_dpo.errors import UserError


@dataclass(frozen=True)
class Layout:
    """How processes share one copy of the model and its tokens; the rest of the world is data-parallel.

    tensor, pipeline, context: processes that divide each layer, the layers, the tokens of a row.
    expert, expert_tensor: processes that divide the experts of a mixture, and each expert (None: as `tensor`); they are
        taken from the same processes, not from more.
    sequence: between the divided parts of a layer, tensor-parallel ranks hold a part of the tokens each.
    first_stage_layers, last_stage_layers: where these stages are to hold another number of layers than the rest.
    """

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    expert_tensor: int | None = None
    sequence: bool = False
    first_stage_layers: int | None = None
    last_stage_layers: int | None = None

    @property
    def splits_sequence(self) -> bool:
        """True where tensor-parallel ranks divide the tokens too, which takes at least two of them."""
        return self.sequence and self.tensor > 1

    @property
    def replica(self) -> int:
        """The number of processes that share one copy of the model."""
        return self.tensor * self.pipeline * self.context

    @property
    def expert_replica(self) -> int:
        """The number of processes of a pipeline stage that share one copy of its experts."""
        return (self.expert_tensor or self.tensor) * self.expert

    def data(self, world_size: int) -> int:
        """The number of data-parallel replicas. Raises UserError where the world does not divide."""
        if world_size % self.replica:
            raise UserError(
                f"{world_size} processes do not divide into tensor x pipeline x context parallel groups of {self.replica}",
                remedy="start a multiple of that many",
            )
        experts = self.expert_replica * self.pipeline
        if world_size % experts:
            raise UserError(
                f"{world_size} processes do not divide into expert x expert-tensor x pipeline parallel groups of {experts}",
                remedy="start a multiple of that many",
            )
        return world_size // self.replica

    def stages(self, num_layers: int) -> list[slice]:
        """The layers of each pipeline stage. Raises UserError where stages that name no number cannot share the rest evenly."""
        if self.pipeline == 1:
            return [slice(0, num_layers)]
        first, last = self.first_stage_layers, self.last_stage_layers
        named = [n for n in (first, last) if n is not None]
        stages, layers = self.pipeline - len(named), num_layers - sum(named)
        even = layers > 0 and layers % stages == 0 if stages else layers == 0
        if not even or any(n <= 0 for n in named):
            besides = f" besides the {sum(named)} of the first or last stage" if named else ""
            message = f"the policy's {layers} layers{besides} do not divide over {stages} ranks"
            raise UserError(message, remedy="change the parallel size")
        sizes = [layers // stages] * stages if stages else []
        sizes = [*([first] if first else []), *sizes, *([last] if last else [])]
        ends = [sum(sizes[: stage + 1]) for stage in range(len(sizes))]
        return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
