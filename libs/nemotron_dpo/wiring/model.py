"""The policy that a run trains: how it is divided, recomputed, adapted, opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemotron_dpo.config import RunConfig
    from nemotron_dpo.policy.layout import Layout
    from nemotron_dpo.policy.load_balancing import LoadBalancing
    from nemotron_dpo.policy.lora_targets import Lora
    from nemotron_dpo.policy.recompute import Recompute
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy
    from nemotron_dpo.sources import ModelSource
    from nemotron_dpo.training.resume import ResumeState


def initial_policy(run: RunConfig, named: str) -> ModelSource:
    """The policy that training starts from; `named` is what the command line names.

    Raises UserError where a checkpoint could not have a copy of its tokenizer: the first save would be too late to say so.
    """
    from nemotron_dpo.checkpoint import tokenizer_files
    from nemotron_dpo.checkpoint.policy import tokenizer_folder
    from nemotron_dpo.sources import resolve, resolve_pretrained

    pretrained = run.checkpointing.pretrained_checkpoint
    found = resolve_pretrained(pretrained.path, pretrained.format, named) if pretrained.path else resolve(named)
    if run.checkpointing.enabled and (folder := tokenizer_folder(found)) is not None:
        tokenizer_files.copied(folder)
    return found


def layout(run: RunConfig) -> Layout:
    """How the processes share the model and its tokens."""
    from nemotron_dpo.policy.layout import Layout

    megatron = run.policy.megatron_cfg
    return Layout(
        tensor=megatron.tensor_model_parallel_size,
        pipeline=megatron.pipeline_model_parallel_size,
        context=megatron.context_parallel_size,
        expert=megatron.expert_model_parallel_size,
        expert_tensor=megatron.expert_tensor_parallel_size,
        sequence=megatron.sequence_parallel,
        first_stage_layers=megatron.num_layers_in_first_pipeline_stage,
        last_stage_layers=megatron.num_layers_in_last_pipeline_stage,
    )


def optimization(run: RunConfig) -> Optimization:
    """The optimizer's settings."""
    from nemotron_dpo.policy.trainable import Optimization

    megatron, optimizer = run.policy.megatron_cfg, run.policy.optimizer
    return Optimization(
        lr=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        betas=optimizer.betas,
        eps=optimizer.eps,
        max_grad_norm=run.policy.max_grad_norm,
        use_distributed_optimizer=megatron.use_distributed_optimizer,
        grad_reduce_in_fp32=megatron.grad_reduce_in_fp32,
    )


def lora(run: RunConfig) -> Lora | None:
    """The adapters to train in place of the policy's own weights."""
    from nemotron_dpo.policy.lora_targets import Lora

    peft = run.policy.megatron_cfg.peft
    if not peft.enabled:
        return None
    return Lora(peft.dim, peft.alpha, peft.target_modules, peft.exclude_modules, peft.lora_A_init_method, peft.lora_dtype)


def load_balancing(run: RunConfig) -> LoadBalancing | None:
    """The auxiliary loss of the routers of a policy with experts."""
    from nemotron_dpo.policy.load_balancing import LoadBalancing

    kind = run.policy.megatron_cfg.moe_router_load_balancing_type
    if kind in ("none", "sinkhorn"):  # the latter is refused where there are experts
        return None
    return LoadBalancing(kind, run.policy.megatron_cfg.moe_aux_loss_coeff)


def recompute(run: RunConfig) -> Recompute | None:
    """What is recomputed where activation_checkpointing is on: whole layers unless told otherwise, as in NeMo-RL."""
    from nemotron_dpo.policy.recompute import Recompute

    megatron, default = run.policy.megatron_cfg, Recompute()
    if not megatron.activation_checkpointing:
        return None
    return Recompute(
        granularity=megatron.recompute_granularity or default.granularity,
        method=megatron.recompute_method or default.method,
        num_layers=megatron.recompute_num_layers or default.num_layers,
        modules=default.modules if megatron.recompute_modules is None else megatron.recompute_modules,
    )


def check_router(run: RunConfig, policy: ModelSource) -> None:
    """Raise UserError where `policy` has experts and their router is to be trained as it is not here."""
    from nemotron_dpo.checkpoint.policy import read_architecture
    from nemotron_dpo.config import router_refusal

    routers = read_architecture(policy).routers
    refusal = router_refusal(run, routers[0].usual_coeff) if routers else None
    if refusal is not None:
        raise refusal


def cut_lines(run: RunConfig, policy: ModelSource) -> list[str]:
    """How the work is divided over several processes, and how much of the policy trains where that is not all of it."""
    from nemotron_dpo.checkpoint.policy import read_architecture
    from nemotron_dpo.policy.lora_targets import adapter_parameters
    from nemotron_dpo.policy.parallel import job_size

    made, adapted, lines = layout(run), lora(run), list[str]()
    if job_size() > 1:
        sizes = {"tensor": made.tensor, "pipeline": made.pipeline, "context": made.context, "data": made.data(job_size())}
        cut = " x ".join(f"{size} {name}" for name, size in sizes.items() if size > 1)
        experts = f", experts divided over {made.expert}" if made.expert > 1 else ""
        lines.append(f"training on {job_size()} processes: {cut}-parallel{experts}")
    if adapted is not None:
        architecture = read_architecture(policy)
        own, whole = round(adapter_parameters(adapted, architecture)), architecture.num_parameters()
        share = f"{100 * own / (own + whole):.2g} %"
        lines.append(
            f"training {own:,} parameters of adapters (LoRA of rank {adapted.dim}) beside {whole:,} frozen ones: {share}"
        )
    return lines


def open_trainable(run: RunConfig, policy: ModelSource, resumed: ResumeState | None) -> TrainablePolicy:
    """The initial policy, or the one of the resumed step with its optimizer's state."""
    from nemotron_dpo.checkpoint import adapters, megatron, optimizer_state
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.balanced_routers import balance, move_biases
    from nemotron_dpo.policy.lora import Adapted, adapt
    from nemotron_dpo.policy.routers import freeze_routers
    from nemotron_dpo.policy.trainable import TrainablePolicy
    from nemotron_dpo.training.data import weights_digest

    length, adapted, megatron_cfg = run.policy.max_total_sequence_length, lora(run), run.policy.megatron_cfg
    source = resumed.policy if resumed and not adapted else policy
    model = open_policy(source, run.policy.precision, max_length=length, recompute=recompute(run))
    if adapted:
        adapt(model, Adapted(adapted, adapters.base_of(policy, weights_digest(policy))), run.dpo.seed)
        if resumed:
            megatron.load(model, resumed.policy.path)
    if megatron_cfg.freeze_moe_router:
        freeze_routers(model)
    if not adapted:
        move_biases(model, megatron_cfg.moe_router_bias_update_rate)
    balance(model, load_balancing(run))
    if run.checkpointing.save_optimizer:
        optimizer_state.check_can_be_saved(model, distributed=megatron_cfg.use_distributed_optimizer)
    trainable = TrainablePolicy(model, optimization(run))
    if resumed:
        optimizer_state.load(trainable, resumed.optimizer)
    return trainable
