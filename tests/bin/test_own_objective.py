"""dpo-train --objective FILE.py:NAME: a user's objective trains, resumes as itself, and is refused in one line where it is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_dpo import wiring
from nemotron_dpo.config import DpoConfig, RunConfig, identity, load_objective, load_run_and_idle, objective_of
from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.trial import problem
from nemotron_dpo.policy import parallel
from support import small
from support.programs import check, command, error_line, execute_job, losses, metrics, run

OWN = """\
from dataclasses import dataclass

from nemotron_dpo.objective.protocol import Needs, PairLosses


@dataclass(frozen=True)
class SquaredHinge:
    beta: float
    needs = Needs(reference=True)
    terms = {"preference": None}

    def losses(self, pairs):
        rewards = pairs.rewards()
        loss = (1 - self.beta * (rewards.chosen - rewards.rejected)).clamp(min=0) ** 2
        return PairLosses(loss, {"preference": loss}, rewards)
"""
COMMON = (
    "policy.precision=float32",
    "policy.train_global_batch_size=8",
    "policy.max_total_sequence_length=64",
    "policy.scheduler.warmup_steps=0",
    "policy.optimizer.lr=0.003",
    "checkpointing.save_optimizer=true",
    "checkpointing.save_period=1",
    "dpo.beta=0.3",
)


@pytest.fixture(scope="module")
def scored(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 random pairs scored in float32."""
    folder = tmp_path_factory.mktemp("scored")
    small.write_pairs(folder / "pairs.arrow", small.random_pairs(16, seed=5))
    check("ref-logprobs", folder / "pairs.arrow", "-o", folder / "scored.arrow", "--policy", llama, "--precision", "float32")
    return folder / "scored.arrow"


def _arguments(scored: Path, llama: Path, folder: Path, objective: str, *overrides: str) -> list[object]:
    return [scored, "--policy", llama, "--run-dir", folder, "--objective", objective, *COMMON, *overrides]


def test_it_trains_and_resumes_as_itself_alone(scored: Path, llama: Path, tmp_path: Path) -> None:
    """Where policy and reference are the same, max(0, 1 - 0)^2 = 1; after that they are not."""
    (tmp_path / "mine.py").write_text(OWN)
    given = _arguments(scored, llama, tmp_path / "run", f"{tmp_path}/mine.py:SquaredHinge")
    check("dpo-train", *given, "dpo.max_num_steps=1")
    assert losses(tmp_path / "run") == pytest.approx([1.0], abs=1e-5)
    check("dpo-train", *given, "dpo.max_num_steps=2")  # resumed
    assert losses(tmp_path / "run")[1] != pytest.approx(1.0, abs=1e-3)
    assert {"train/preference_loss", "train/accuracy"} <= set(metrics(tmp_path / "run")[1])
    (tmp_path / "mine.py").write_text(OWN.replace("** 2", "** 3"))
    message = error_line(run("dpo-train", *given, "dpo.max_num_steps=2"), "dpo-train")
    assert '--objective was "SquaredHinge of a file sha256:' in message
    plain = [word for word in given if word not in ("--objective", f"{tmp_path}/mine.py:SquaredHinge")]
    assert "--objective was" in error_line(run("dpo-train", *plain, "dpo.max_num_steps=2"), "dpo-train")


# what is in the file, NAME, what is said after the file's name
WRONG = [
    (OWN, "Hinge", ": has no Hinge: it has SquaredHinge"),
    (OWN, "Needs", ": Needs has no needs and no terms and no losses: it must be a frozen dataclass with needs, terms and losses"),
    (OWN, "dataclass", ": dataclass is no objective: it must be"),
    (OWN.replace("needs = Needs(reference=True)", "needs = True"), "SquaredHinge", ": SquaredHinge.needs is no Needs(...)"),
    (OWN.replace("beta: float", "beta: float\n    tau: float"), "SquaredHinge", ": SquaredHinge has a field tau, which no key"),
    ("import nothing_like_it\n", "A", ":1: does not run: ModuleNotFoundError: No module named 'nothing_like_it'"),
    ("x = 1\ndef f(:\n", "A", ":2: is no Python: invalid syntax"),
    ("import sys\nsys.exit(3)\n", "A", ":2: does not run: SystemExit: 3"),
    (OWN.replace("rewards.chosen", "rewards.chozen"), "SquaredHinge", ":14: does not run: AttributeError: 'Rewards' object has no"),
    (OWN.replace("clamp(min=0) ** 2", "sum()"), "SquaredHinge", ": SquaredHinge gives the loss as [] for 2 pairs, where one number"),
    (OWN.replace("return PairLosses", "return tuple"), "SquaredHinge", ":15: does not run: TypeError"),
    (OWN.replace("(loss, {", "(loss, {'x': loss, "), "SquaredHinge", ": SquaredHinge has the terms ['preference'], and its losses have"),
    (OWN.replace(", rewards)", ")"), "SquaredHinge", ": SquaredHinge compares responses and gives no Rewards"),
    (OWN.replace(" ** 2", " / 0"), "SquaredHinge", ": SquaredHinge gives the loss as ["),
    (OWN.replace(" ** 2", ".detach()"), "SquaredHinge", ": SquaredHinge gives a loss without a gradient"),
    (OWN.replace("(frozen=True)", ""), "SquaredHinge", ": SquaredHinge is no objective: it must be a frozen dataclass"),
    (OWN.replace("e=True)\n    terms", "e=True, state=True)\n    terms"), "SquaredHinge", ": SquaredHinge needs a state and has no state"),
    (OWN.replace("beta: float", "beta: float\n    seed: int = 1"), "SquaredHinge", ": SquaredHinge has a field seed, and dpo.seed is no"),
    (OWN.replace('": None}', '": None}; modifiers = "x"'), "SquaredHinge", ": SquaredHinge.modifiers has 'x': it must be a tuple of f_d"),
    (OWN.replace("SquaredHinge", "sft"), "sft", ": sft is the name of an objective of ours: call it otherwise"),
    (OWN.replace('"preference"', '"a/b"'), "SquaredHinge", ": SquaredHinge has a term 'a/b', which is no name"),
    (OWN.replace('": None}', '": 1.0}'), "SquaredHinge", ": SquaredHinge has 1.0 for the term preference, where a FirstReading"),
    (OWN.replace('terms = {"preference": None}', "terms = property(lambda own: 1 / 0)"), "SquaredHinge", ":10: does not run: ZeroDivi"),
]  # fmt: skip


@pytest.mark.slow
def test_what_is_no_objective_is_one_line(scored: Path, llama: Path, tmp_path: Path) -> None:
    for number, (text, name, words) in enumerate(WRONG):
        (tmp_path / f"{number}.py").write_text(text)
        done = run("dpo-train", *_arguments(scored, llama, tmp_path / "run", f"{tmp_path}/{number}.py:{name}"))
        assert error_line(done, "dpo-train").startswith(f"{tmp_path}/{number}.py{words}"), done.stderr.decode()
        assert done.returncode == 1
    for objective, words, status in (
        ("mine.py", "--objective mine.py: is no FILE.py:NAME", 2),
        (f"{tmp_path}/none.py:A", f"{tmp_path}/none.py: cannot be read: No such file", 1),
    ):
        done = run("dpo-train", *_arguments(scored, llama, tmp_path / "run", objective))
        assert words in done.stderr.decode()
        assert done.returncode == status
    (tmp_path / "mine.py").write_text(OWN)
    mixed = run(
        "dpo-train", *_arguments(scored, llama, tmp_path / "run", f"{tmp_path}/mine.py:SquaredHinge", "dpo.preference_loss=ipo")
    )
    assert "is ipo, and --objective stands in its place: leave it out" in error_line(mixed, "dpo-train")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    (tmp_path / "late.py").write_text(
        OWN.replace("        rewards =", "        assert len(pairs.chosen.logp) == 2\n        rewards =")
    )
    late = run("dpo-train", *_arguments(scored, llama, tmp_path / "late", f"{tmp_path}/late.py:SquaredHinge"))
    assert error_line(late, "dpo-train").startswith(f"{tmp_path}/late.py:13: does not run: AssertionError")


def test_what_goes_beside_it(tmp_path: Path) -> None:
    """A modifier that reads tails works on the made-up pairs. A term called sft is one name for two with sft_loss_weight."""
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "sft.py").write_text(OWN.replace('"preference"', '"sft"'))
    mine, sft = (load_objective(f"{tmp_path}/{name}.py:SquaredHinge") for name in ("mine", "sft"))
    dpo = load_run_and_idle(None, ["dpo.ld_alpha=0.5", "dpo.sft_loss_weight=0.5"], [], mine)[0].dpo
    assert problem(objective_of(dpo)) is None
    assert list(objective_of(load_run_and_idle(None, [], [], sft)[0].dpo).terms) == ["sft"]
    with pytest.raises(UserError, match=r"sft_loss_weight.* is 0\.5, and SquaredHinge has a term sft too: leave it 0"):
        load_run_and_idle(None, ["dpo.sft_loss_weight=0.5"], [], sft)
    with pytest.raises(UserError, match="is 0, and --objective would not be trained: leave it out"):
        load_run_and_idle(None, ["dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1"], [], mine)


STATE = """
    seen: float = settings.state()
    state = property(settings.state_of)

    def with_state(self, state):
        return replace(self, **state)

    def after(self, batch):
        return replace(self, seen=%s)
"""


def test_its_state_is_of_numbers(tmp_path: Path) -> None:
    imports = "from dataclasses import dataclass, replace\nfrom nemotron_dpo.objective import settings\n"
    stateful = OWN.replace("from dataclasses import dataclass\n", imports).replace(
        "reference=True", "reference=True, state=True"
    )
    for value, words in (
        ("2.0", None),
        ("batch.chosen.logp.sum()", "has tensor(-8., grad_fn=<SumBackward0>) as seen of its state"),
    ):
        (tmp_path / "mine.py").write_text(stateful.replace("    beta: float\n", "    beta: float\n" + STATE % value))
        own = load_objective(f"{tmp_path}/mine.py:SquaredHinge")
        found = problem(objective_of(load_run_and_idle(None, [], [], own)[0].dpo))
        assert (found is None) if words is None else str(found).startswith(words)


@pytest.mark.multiprocess
def test_all_ranks_train_it(scored: Path, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    given = _arguments(scored, llama, tmp_path / "run", f"{tmp_path}/mine.py:SquaredHinge", "dpo.max_num_steps=1")
    done = execute_job(2, command("dpo-train", *given))
    assert done.returncode == 0, done.stderr.decode()
    assert losses(tmp_path / "run") == pytest.approx([1.0], abs=1e-5)


def test_its_settings_are_keys(tmp_path: Path) -> None:
    """A value that is simpo's default of gamma is one like another for an objective that has a gamma of its own."""
    (tmp_path / "mine.py").write_text(OWN.replace("beta: float", "beta: float\n    gamma: float = 0.7\n    tau: float = 3.0"))
    own = load_objective(f"{tmp_path}/mine.py:SquaredHinge")
    for overrides, gamma in (([], 0.7), (["dpo.gamma=0.5"], 0.5), (["dpo.ld_alpha=1", "dpo.gamma=2"], 2.0)):
        run, warnings, idle = load_run_and_idle(None, overrides, [], own)
        (((_, made),), found) = objective_of(run.dpo).parts, identity(run, has_routers=False)[0]  # type: ignore[attr-defined] - it is a WeightedSum
        assert (made.gamma, made.tau, warnings, idle) == (gamma, 3.0, [], [])
        assert str(found["--objective"]).startswith("SquaredHinge of a file sha256:")
    for override, words in (
        (
            "dpo.label_smoothing=0.1",
            "is not used by SquaredHinge: what it uses is dpo.reference_policy_kl_penalty, dpo.gamma, dpo.tau",
        ),
        ("dpo.f_divergence=forward_kl", "has no meaning with SquaredHinge"),
    ):
        with pytest.raises(UserError, match=words):
            load_run_and_idle(None, [override], [], own)


def test_another_file_on_another_rank_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts may have different files of one name."""
    (tmp_path / "mine.py").write_text(OWN)
    dpo = DpoConfig(own_objective=load_objective(f"{tmp_path}/mine.py:SquaredHinge"))
    monkeypatch.setattr(parallel, "job_size", lambda: 2)
    monkeypatch.setattr(parallel, "gather", lambda mine: [mine, "sha256:0123456789abcdef"])
    with pytest.raises(
        UserError, match=r"mine\.py: is not the same file on all ranks \(rank 0: sha256:\w{10}, rank 1: sha256:0123456789\)"
    ):
        wiring.check_own_objective(RunConfig(dpo=dpo))


def test_no_config_and_no_job_takes_one(tmp_path: Path) -> None:
    done = run("nemotron-steps", "run", "dpo", "-c", "tiny", "-d", "--objective", "mine.py:A", cwd=tmp_path)
    assert "--objective: is dpo-train's: a job runs on other machines too" in done.stderr.decode()
    assert done.returncode == 2
