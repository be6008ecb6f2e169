"""A mixture of feed-forward experts, of which a router picks some for each token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.sublayer import Kept, Linear, PairTokens, Parameters, entering_bytes, norm_parameters

if TYPE_CHECKING:
    from nemotron_dpo.policy.architecture import Architecture
    from nemotron_dpo.policy.layout import Layout

Score = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Router:
    """Picks `top_k` of `num` experts a token.

    With `renormalize` the picked probabilities are made to sum to one (softmax over the picked logits). `aux_loss_coeff` is the
    model's own coefficient of the auxiliary loss, None where it says none; it takes no part in what the model is. Without
    `balances` that number is kept, and no more: nobody trains the family with such a loss unless told to.

    `score` makes probabilities of logits. With `expert_bias` a number an expert, in float32, is added to them where experts are
    picked, and not where their outputs are weighed. `scaling` multiplies the weights. Of `num_groups` groups of experts,
    `picked_groups` are picked before. With `bias` the logits have one.
    """

    num: int
    top_k: int
    renormalize: bool = True
    aux_loss_coeff: float | None = field(default=None, compare=False)
    score: Score = "softmax"
    expert_bias: bool = False
    scaling: float = 1.0
    num_groups: int = 1
    picked_groups: int = 1
    bias: bool = False
    balances: bool = field(default=True, compare=False)

    @property
    def usual_coeff(self) -> float | None:
        """The coefficient with which it is trained where nobody says one; None where nobody knows."""
        return self.aux_loss_coeff if self.balances else 0.0


@dataclass(frozen=True)
class Experts:
    """`router.num` experts, each one a feed-forward part as `expert` is; every token goes through `shared` besides.

    With `shared_gate` what that gives is multiplied by the sigmoid of one number a token, a product with weights of its own.
    """

    router: Router
    expert: Dense
    shared: Dense | None = None
    shared_gate: bool = False

    module = "moe"

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the names of its parameters, and of the expert bias, begin with."""
        bias = ("mlp.router.expert_bias",) if self.router.expert_bias else ()
        bias += ("mlp.router.bias",) if self.router.bias else ()
        shared = ("mlp.shared_experts.",) if self.shared else ()
        return "pre_mlp_layernorm.", "mlp.router.weight", *bias, "mlp.experts.", *shared

    def linears(self, architecture: Architecture) -> tuple[Linear, ...]:
        return *self._experts(architecture), *self._shared(architecture)

    def _experts(self, architecture: Architecture) -> tuple[Linear, ...]:
        parts = (linear.name.removeprefix("mlp.") for linear in self.expert.linears(architecture))
        names = (f"mlp.experts.local_experts.{{}}.{part}" for part in parts)
        num, met = self.router.num, self.router.top_k
        return tuple(
            replace(linear, name=name, copies=num, met=met)
            for linear, name in zip(self.expert.linears(architecture), names, strict=True)
        )

    def _shared(self, architecture: Architecture) -> tuple[Linear, ...]:
        linears = self.shared.linears(architecture) if self.shared else ()
        return tuple(replace(each, name=each.name.replace("mlp.", "mlp.shared_experts.")) for each in linears)

    def parameters(self, architecture: Architecture) -> Parameters:
        linears, router = self._experts(architecture), self.router.num * (architecture.hidden_size + self.router.bias)
        biases, gate = self.expert.biases(architecture), architecture.hidden_size if self.shared_gate else 0
        return Parameters(
            split=sum(linear.size for linear in self._shared(architecture)),
            whole=norm_parameters(architecture) + router + gate,
            router=router,
            experts=sum(linear.copies * linear.size for linear in linears) + self.router.num * biases,
            experts_met=sum(linear.met * linear.size for linear in linears) + self.router.top_k * biases,
        )

    def weights_met(self, architecture: Architecture) -> int:
        picked = sum(linear.met * linear.size for linear in self.linears(architecture))
        return picked + (self.router.num + self.shared_gate) * architecture.hidden_size

    def mixing_flops(self, pair: PairTokens) -> tuple[Any, Any]:
        return 0, 0

    def kept(self, architecture: Architecture, layout: Layout, width: int) -> Kept:
        """For each expert that a token goes through, its products and what is made of them, and its own copies of the token."""
        products = 5 if self.expert.gated else 3  # the second factor of the last is the token's probability
        products += 4 if self.expert.clamp else 0  # what is clamped, and the steps of its activation
        elements = self.router.top_k * (products * self.expert.ffn_hidden_size + 2 * architecture.hidden_size)
        if self.shared is not None:  # megatron-core's shared experts make nothing again, and multiply gate and up
            elements += (4 if self.shared.gated else 2) * self.shared.ffn_hidden_size
        elements += 2 * architecture.hidden_size if self.shared_gate else 0
        return Kept(entering_bytes(architecture, layout, width), width * elements / layout.tensor)

    def beside(self, architecture: Architecture, layout: Layout, width: int) -> float:
        shared = self.shared.beside(architecture, layout, width) if self.shared else 0
        return max(shared, self.router.top_k * self.expert.beside(architecture, layout, width))

    def undivided(self, layout: Layout) -> Iterator[tuple[str, int, int]]:
        yield "feed-forward channels", self.expert.ffn_hidden_size, layout.expert_tensor or layout.tensor
        yield "experts", self.router.num, layout.expert
        if self.expert.bias and (layout.expert_tensor or layout.tensor) > 1:
            what = "an expert that has biases is not divided over tensor-parallel ranks by megatron-core"
            raise UserError(what, remedy="set policy.megatron_cfg.expert_tensor_parallel_size=1")
        if self.shared is not None:
            yield "channels of shared experts", self.shared.ffn_hidden_size, layout.tensor
        if layout.tensor > 1 and not layout.sequence:
            raise UserError(
                "a mixture of experts under tensor parallelism trains only with sequence parallelism",
                remedy="set policy.megatron_cfg.sequence_parallel=true",
            )

    def config(self) -> dict[str, Any]:
        """The router as Hugging Face's: no token dropped, no auxiliary loss, probabilities in float32."""
        router, expert = self.router, self.expert.config()
        _check(router)
        assert router.bias == self.expert.bias  # megatron-core has one setting for both
        sigmoid = router.score == "sigmoid"
        return {
            "num_moe_experts": router.num,
            "moe_ffn_hidden_size": expert.pop("ffn_hidden_size"),
            "moe_shared_expert_intermediate_size": self.shared.ffn_hidden_size if self.shared else None,
            "moe_shared_expert_gate": self.shared_gate,
            "moe_router_topk": router.top_k,
            "moe_router_pre_softmax": not router.renormalize and not sigmoid,
            "moe_router_score_function": router.score,
            "moe_router_enable_expert_bias": router.expert_bias,
            "moe_router_bias_update_rate": 0.0,  # until a trainer says otherwise
            "moe_router_topk_scaling_factor": router.scaling if router.scaling != 1.0 else None,
            "moe_router_num_groups": router.num_groups if router.num_groups > 1 else None,
            "moe_router_group_topk": router.picked_groups if router.num_groups > 1 else None,
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


def _check(router: Router) -> None:
    """Raise UserError where megatron-core would route otherwise than the model's own code."""
    if router.top_k == 1 and router.renormalize:
        what = "a router that picks one expert and renormalizes is not supported"
        raise UserError(what, remedy="two or more experts are")
    if router.score == "sigmoid" and router.top_k > 1 and not router.renormalize:
        what = "a router of sigmoids that does not renormalize is not supported"
        raise UserError(what, remedy="one that renormalizes is (norm_topk_prob: true)")
    if router.expert_bias and router.score != "sigmoid":
        raise UserError("an expert bias without sigmoids is not supported", remedy="with a router of sigmoids it is")
    if router.num_groups > 1 and router.top_k != 2 * router.picked_groups:
        # megatron-core ranks groups by as many experts as each gives, Hugging Face's and DeepSeek's by the best two
        what = f"a router that picks {router.top_k} experts of {router.picked_groups} of {router.num_groups} groups"
        raise UserError(f"{what} is not supported", remedy="one with two experts a group is, and one without groups")
