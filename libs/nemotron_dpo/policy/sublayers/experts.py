"""A mixture of feed-forward experts, of which a router picks some for each token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.sublayer import Kept, Linear, PairTokens, Parameters, entering_bytes, norm_parameters

if TYPE_CHECKING:
    from nemotron_dpo.policy.architecture import Architecture
    from nemotron_dpo.policy.layout import Layout


@dataclass(frozen=True)
class Router:
    """Picks `top_k` of `num` experts a token.

    With `renormalize` the picked probabilities are made to sum to one (softmax over the picked logits). `aux_loss_coeff` is the
    model's own coefficient of the auxiliary loss, None where it says none; it takes no part in what the model is.
    """

    num: int
    top_k: int
    renormalize: bool = True
    aux_loss_coeff: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Experts:
    """`router.num` experts, each one a feed-forward part as `expert` is."""

    router: Router
    expert: Dense

    prefixes = ("pre_mlp_layernorm.", "mlp.router.", "mlp.experts.")
    module = "moe"

    def linears(self, architecture: Architecture) -> tuple[Linear, ...]:
        parts = (linear.name.removeprefix("mlp.") for linear in self.expert.linears(architecture))
        names = (f"mlp.experts.local_experts.{{}}.{part}" for part in parts)
        num, met = self.router.num, self.router.top_k
        return tuple(
            replace(linear, name=name, copies=num, met=met)
            for linear, name in zip(self.expert.linears(architecture), names, strict=True)
        )

    def parameters(self, architecture: Architecture) -> Parameters:
        linears, router = self.linears(architecture), self.router.num * architecture.hidden_size
        return Parameters(
            whole=norm_parameters(architecture) + router,
            router=router,
            experts=sum(linear.copies * linear.size for linear in linears),
            experts_met=sum(linear.met * linear.size for linear in linears),
        )

    def weights_met(self, architecture: Architecture) -> int:
        picked = sum(linear.met * linear.size for linear in self.linears(architecture))
        return picked + self.router.num * architecture.hidden_size

    def mixing_flops(self, pair: PairTokens) -> tuple[Any, Any]:
        return 0, 0

    def kept(self, architecture: Architecture, layout: Layout, width: int) -> Kept:
        """For each expert that a token goes through, its products and what is made of them, and its own copies of the token."""
        elements = self.router.top_k * (5 * self.expert.ffn_hidden_size + 2 * architecture.hidden_size)
        return Kept(entering_bytes(architecture, layout, width), width * elements / layout.tensor)

    def beside(self, architecture: Architecture, layout: Layout, width: int) -> float:
        return self.router.top_k * self.expert.beside(architecture, layout, width)

    def undivided(self, layout: Layout) -> Iterator[tuple[str, int, int]]:
        yield "feed-forward channels", self.expert.ffn_hidden_size, layout.expert_tensor or layout.tensor
        yield "experts", self.router.num, layout.expert
        if layout.tensor > 1 and not layout.sequence:
            raise UserError(
                "a mixture of experts under tensor parallelism trains only with sequence parallelism",
                remedy="set policy.megatron_cfg.sequence_parallel=true",
            )

    def config(self) -> dict[str, Any]:
        """The router as Hugging Face's: no token dropped, no auxiliary loss, probabilities in float32."""
        if self.router.top_k == 1 and self.router.renormalize:
            what = "a router that picks one expert and renormalizes is not supported"
            raise UserError(what, remedy="two or more experts are")
        expert = self.expert.config()
        return {
            "num_moe_experts": self.router.num,
            "moe_ffn_hidden_size": expert.pop("ffn_hidden_size"),
            "moe_router_topk": self.router.top_k,
            "moe_router_pre_softmax": not self.router.renormalize,
            "moe_router_load_balancing_type": "none",
            "moe_router_dtype": "fp32",
            "moe_token_dispatcher_type": "alltoall",
            "moe_grouped_gemm": False,
            **expert,
        }

    def spec(self, config: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """Transformer Engine fuses the norm into a dense layer only, so its key is its own here."""
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

        from nemotron_dpo.kernels.grouped_linear import is_fast
        from nemotron_dpo.policy.device import device
        from nemotron_dpo.policy.expert_dispatch import prepare_dispatch
        from nemotron_dpo.policy.grouped_experts import GroupedExperts
        from nemotron_dpo.policy.norm import Norm

        prepare_dispatch()
        parts: Any = get_gpt_layer_local_spec(num_experts=self.router.num, normalization=config.normalization).submodules
        if is_fast(device(), config.params_dtype):
            parts.mlp.submodules.experts.module = GroupedExperts
        return {"pre_mlp_layernorm": Norm, "mlp": parts.mlp, "mlp_bda": parts.mlp_bda}, {}
