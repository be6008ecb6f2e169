"""What speaks for shipping a policy and what against it. Each is one question to the record, and one line of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from nemotron_dpo.report.document import Check
from nemotron_dpo.report.pair_log import correlation
from nemotron_dpo.report.run_report import Run, held_accuracy, what_pairs
from nemotron_dpo.report.visible import number, percent, visible

UNLEARNED = -0.5  # nats a token: the chosen responses are then 0.6 times as probable, token by token
_FEW = 0.05  # of the validation pairs: so many may be trained on as well before that speaks against the rest
_GAP = 0.15  # of accuracy, between pairs that were trained on and held-out ones
_SPIKE = 10.0  # times the median gradient norm
_BY_LENGTH = 0.5  # of the correlation between margin and length
_ONE_SIDED = 0.95  # of the pairs have the longer response on one side


def checks(run: Run) -> list[Check]:
    """All of them, in the order of their weight."""
    looks: tuple[Callable[[Run], Iterator[Check]], ...] = (
        _alarms,
        _ending,
        _fall,
        _trained_on,
        _held_out,
        _by_heart,
        _turned,
        _chosen,
        _length,
        _spikes,
    )
    return [check for look in looks for check in look(run)]


def _alarms(run: Run) -> Iterator[Check]:
    """What the guards of training saw, once a kind. A jump of the gradient is no more than a reason to look."""
    for kind, alarm in {str(one.get("kind")): one for one in reversed(run.alarms)}.items():
        good = alarm.get("good_step")
        after = f" The last good step is {good}." if isinstance(good, int) and good > 0 else ""
        said = visible(alarm.get("seen") or kind)
        mark = "open" if kind == "gradient_spike" else "bad"
        yield Check(mark, f"The guards of training spoke at step {visible(alarm.get('step', '?'))}: {said}.{after}")


def _ending(run: Run) -> Iterator[Check]:
    state, reason, step = run.given.state, run.given.facts.get("reason"), run.measured.last_step
    why = f" ({visible(reason)})" if reason else ""
    if state == "running":
        yield Check("open", f"It still runs: this is how it stood after step {step}.")
    elif state in ("failed", "killed", "stopped"):
        yield Check(
            "bad", f"It {'was ' if state != 'failed' else ''}{state} after step {step}{why}, and did not come to its end."
        )
    elif run.steps_planned and step < run.steps_planned and state != "done":
        yield Check("open", f"It has {step} of {run.steps_planned} steps; nothing says why it ended.")


def _fall(run: Run) -> Iterator[Check]:
    ends = run.measured.made.ends
    first, last = ends.first.get("loss"), ends.last.get("loss")
    if run.measured.made.num_steps > 1 and first is not None and last is not None and last >= first:
        yield Check("open", f"The loss of training did not fall: it went from {number(first)} to {number(last)}.")


def _trained_on(run: Run) -> Iterator[Check]:
    """Repeats what dpo-train warned of."""
    count, total = run.trained_on
    if count:
        said = f"{count:,} of the {total:,} validation pairs are trained on as well: what it measures of them is no test."
        yield Check("bad" if is_no_test(run) else "open", said)


def is_no_test(run: Run) -> bool:
    """Whether more than a few validation pairs are trained on as well."""
    count, total = run.trained_on
    return count > _FEW * total


def _held_out(run: Run) -> Iterator[Check]:
    name = run.measured.validation
    accuracy = run.measured.sets[name].get("accuracy") if name else None
    if name is None:
        yield Check("open", "No pairs were held out, so nothing says how it does on pairs that it was not trained on.")
        return
    if accuracy is None or (not accuracy.last and not run.measured.train.get("accuracy")):
        return
    if run.measured.made.num_steps and max(accuracy.steps) == 0:  # all rewards were 0 then: no pair can be right
        yield Check(
            "open", f"It was validated before the first step alone: nothing says how it does on {what_pairs(run)} pairs since."
        )
        return
    if run.measured.made.learned_nothing:  # a margin within rounding counts as wrong
        yield Check(
            "open", f"Rounding alone may make the margins: how many {what_pairs(run)} pairs are right says nothing of training."
        )
        return
    if (recorded := held_accuracy(run)) is None:
        return
    share, count = recorded
    said = (
        f"{percent(share.mean)} of {count:,} {what_pairs(run)} pairs are right (95 % interval {percent(share.low)} to "
        f"{percent(share.high)})"
    )
    if share.low > 0.5 and is_no_test(run):
        yield Check("open", f"{said}: better than tossing a coin, as pairs that were trained on should be.")
    elif share.low > 0.5:
        yield Check("good", f"{said}: better than tossing a coin.")
    elif share.high < 0.5:
        yield Check("bad", f"{said}: worse than tossing a coin. Are chosen and rejected the right way round?")
    else:
        yield Check("open", f"{said}: that may be chance.")


def _by_heart(run: Run) -> Iterator[Check]:
    name, trained = run.measured.validation, run.measured.made.ends.last.get("accuracy")
    held = run.measured.sets[name].get("accuracy") if name else None
    if run.measured.made.learned_nothing:
        return
    if held is not None and trained is not None and trained - held.last > _GAP:
        said = (
            f"It is right in {percent(trained)} of the pairs that it trained on last, and in {percent(held.last)} of "
            f"{what_pairs(run)} ones"
        )
        yield Check("open", f"{said}: part of it is learned by heart.")


def _turned(run: Run) -> Iterator[Check]:
    for one in run.measured.made.validations:
        if "loss" not in one.best or "loss" not in one.last:
            continue
        best, last = f"{one.best['loss']:.4f}", f"{one.last['loss']:.4f}"
        if one.turned:
            said = f"The loss of {visible(one.name)} was best after step {one.best_step} ({best}) and ended at {last}"
            yield Check("bad", f"{said}: the last step is not the one to ship.")
        elif one.last_step > one.best_step or one.last_step > 0:
            yield Check("good", f"The loss of {visible(one.name)} ended where it was best, or within 1 % of it ({last}).")


def _chosen(run: Run) -> Iterator[Check]:
    """How much of the chosen responses' probability is left."""
    drift = drift_per_token(run, "chosen")
    if drift is None:
        return
    said = (
        f"Chosen responses are {'less' if drift < 0 else 'more'} probable than under the reference by "
        f"{number(abs(drift), 3)} nats a token"
    )
    if drift < UNLEARNED:
        yield Check("bad", f"{said}: it unlearns what it should say, which likelihood alone does not show. Read samples of it.")
    else:
        yield Check("good", f"{said}; a fall past {-UNLEARNED:g} would be a bad sign.")


def drift_per_token(run: Run, side: str) -> float | None:
    """The last mean log-ratio of one side, a token: of the validation where there is one."""
    final = run.final
    if final is not None and np.isfinite(ratio := getattr(final, f"{side}_log_ratio")).all():
        return float(ratio.sum() / max(int(getattr(final, f"{side}_tokens").sum()), 1))
    name = run.measured.validation
    values = run.measured.sets[name] if name else run.measured.train
    if (measured := values.get(f"log_ratio_{side}_per_token")) is not None:
        return measured.last
    mean = values.get(f"log_ratio_{side}_mean") or (values.get(f"rewards_{side}_mean") if _has_reference(run) else None)
    tokens, sequences = values.get("global_valid_toks"), values.get("global_valid_seqs")
    if mean is None or tokens is None or sequences is None or not (tokens.last > 0 and sequences.last > 0):
        return None
    return mean.last / (tokens.last / sequences.last)


def _has_reference(run: Run) -> bool:
    """Whether rewards are log-ratios to a reference, as the first loss of dpo tells: its policy was the reference."""
    objective = run.given.setting("dpo.preference_loss", "dpo")
    return isinstance(objective, str) and objective not in ("simpo", "orpo", "cpo", "sft")


def _length(run: Run) -> Iterator[Check]:
    change = run.change
    if change is None or len(change.last) < 30:
        return
    longer, shorter = change.last.longer > 0, change.last.longer < 0
    if longer.mean() > _ONE_SIDED:
        yield Check(
            "open",
            (
                f"In {percent(float(longer.mean()))} of the pairs the chosen response is the longer: nothing here tells "
                "preference from length."
            ),
        )
        return
    related = correlation(change.last.margin, change.last.longer)
    if related is None:
        return
    shares = [float((change.last.margin[rows] > 0).mean()) if rows.any() else None for rows in (longer, shorter)]
    if related > _BY_LENGTH and shares[0] is not None and shares[1] is not None and shares[1] < 0.5 < shares[0]:
        said = (
            f"It is right in {percent(shares[0])} of the pairs whose chosen response is the longer, and in "
            f"{percent(shares[1])} of the others"
        )
        yield Check("bad", f"{said}: it may have learned length.")
    elif related > _BY_LENGTH:
        yield Check(
            "open", f"Margins follow the difference in length (correlation {related:.2f}): see whether it writes longer now."
        )
    else:
        yield Check("good", f"Margins hardly follow length (correlation {related:.2f} with the difference in tokens).")


def _spikes(run: Run) -> Iterator[Check]:
    norm = run.measured.train.get("grad_norm")
    if norm is None or len(norm.values) < 5:
        return
    worst, usual = int(np.argmax(norm.values)), float(np.median(norm.values))
    if usual > 0 and norm.values[worst] > _SPIKE * usual:
        yield Check(
            "open",
            (
                f"The gradient jumped to {number(norm.values[worst], 2)} at step {norm.steps[worst]}, "
                f"{norm.values[worst] / usual:.0f} times its median."
            ),
        )
