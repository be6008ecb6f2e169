"""The three questions of whoever opens a report: did it learn, is it safe to ship, what next."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemotron_dpo.outcome import margin, sentence
from nemotron_dpo.report.document import Answer, Check
from nemotron_dpo.report.evidence import checks, is_no_test
from nemotron_dpo.report.run_folder import typed
from nemotron_dpo.report.run_report import Run, what_pairs
from nemotron_dpo.report.visible import number, percent, visible
from nemotron_dpo.steps.catalogue import manifest
from nemotron_dpo.wording import counted

_STEP = "rl/nemo_rl/dpo"
# What is the matter -> what a strategy of the manifest must be about to speak of it.
_ABOUT = {"diverged": r"diverge|collapse", "length": r"length of the run", "data": r"several places|nobody has looked"}


def headline(run: Run) -> str:
    """What came of it, in a sentence."""
    if run.measured.made.num_steps and run.is_too_early:
        return f"{_too_early(run)}."
    said = sentence(run.measured.made)
    return f"{said[0].upper()}{said[1:]}."


def answers(run: Run) -> tuple[Answer, ...]:
    """All three."""
    found = checks(run)
    return _learned(run), _safe(run, found), _next(run, found)


def _learned(run: Run) -> Answer:
    made = run.measured.made
    first, last, question = made.ends.first, made.ends.last, "Did it learn?"
    if not made.num_steps:
        return Answer(question, "Not yet", "open", "No training step is on record.")
    over = f" (means of the first and the last {counted(made.ends.window, 'step', ',')})" if made.ends.window > 1 else ""
    why = (
        f"The loss went from {number(first.get('loss'))} to {number(last.get('loss'))} over "
        f"{counted(made.num_steps, 'step', ',')}{over}."
    )
    if (gained := margin(last)) and (margin(first) is not None):
        why += f" The margin between chosen and rejected went from {number(margin(first), 3)} to {number(gained, 3)} nats."
    held = next((one for one in made.validations if one.last.get("accuracy") is not None), None)
    if first.get("loss") is None or last.get("loss") is None:
        return Answer(question, "No", "bad", "Its loss was not finite at its beginning or its end.")
    if run.is_too_early:
        return Answer(question, "Too early to tell", "open", why)
    if made.learned_nothing:
        return Answer(question, "Nothing measurable", "bad", f"{why} That is less than rounding alone moves it.")
    if made.num_steps == 1:
        return Answer(question, "One step tells little", "open", why)
    if last.get("loss", 0) >= first.get("loss", 0):
        return Answer(question, "No", "bad", f"{why} It did not fall.")
    if held is not None and margin(held.last):
        why += f" Of {what_pairs(run)} pairs it is right in {percent(held.last['accuracy'])}."
        if held.last["accuracy"] <= 0.5:
            return Answer(question, "Only what it saw", "bad", why)
    return Answer(question, "Yes", "good", why)


def _safe(run: Run, found: list[Check]) -> Answer:
    """No record of pairs can say yes: it can only fail to say no."""
    question, marks = "Is it safe to ship?", [check.mark for check in found]
    kept = tuple(found)
    if "bad" in marks:
        return Answer(question, "Not as it is", "bad", "This speaks against it:", kept)
    made = run.measured.made
    says_little = not made.num_steps or made.learned_nothing or run.is_too_early or run.measured.validation is None
    if says_little or ("open" in marks and "good" not in marks):
        return Answer(question, "Cannot be told", "open", "The record does not say enough:", kept)
    if "open" in marks:
        return Answer(question, "Look closer first", "open", "Nothing speaks against it, and not everything for it:", kept)
    why = "Nothing on record speaks against it. Pairs are not conversations, so read what it writes before others do:"
    return Answer(question, "No objection found", "good", why, kept)


def _next(run: Run, found: list[Check]) -> Answer:
    one = advice(run, found)
    strategy = _strategy(one.about)
    text = one.why if strategy is None else f"{one.why} {_quoted(strategy, is_case=one.is_case)}"
    return Answer("What to try next?", one.what, "open", text, commands=_typed(run, one.setting))


@dataclass(frozen=True)
class Advice:
    """What to do, why, and the setting that does it, where one does; `about` says which strategy of the manifest speaks of it.

    is_case: whether the run is a case of what the strategy is for, or only near it.
    """

    what: str
    why: str
    setting: str = ""
    about: str = ""
    is_case: bool = True


def advice(run: Run, found: list[Check]) -> Advice:
    """The first that fits: what stands in the way of learning, then of shipping, then what may be better still."""
    made, rate, beta = run.measured.made, run.given.setting("policy.optimizer.lr"), run.given.beta
    turned = next((one for one in made.validations if one.turned and one.best_step > 0), None)
    said, first, last = (
        " ".join(check.text for check in found),
        made.ends.first.get("loss", 0.0),
        made.ends.last.get("loss", 0.0),
    )
    if run.given.state == "running":
        return Advice("Wait", "It still runs; this page can be written again at any time.")
    if not made.num_steps:
        return Advice("Train it", "No step was taken.")
    if "right way round" in said:
        return Advice("Look at the pairs", "Chosen and rejected may have changed places.", about="data")
    if serious := [alarm for alarm in run.alarms if alarm.get("kind") != "gradient_spike" and alarm.get("remedy")]:
        return Advice("What the guards advise", f"{visible(serious[0]['remedy'])}.".replace("..", "."), about="diverged")
    if run.is_too_early and "unlearns" not in said:
        return Advice("Let it take more steps", f"{_too_early(run)}.")
    if made.learned_nothing and (known := _higher_rate(run)) is not None:
        return known
    if "unlearns" in said or (last > first and made.num_steps > 1):
        if beta:
            return Advice("A greater beta", "It went too far from the reference.", _beta(max(0.1, 2 * beta)), "diverged")
        return Advice("A lower learning rate", "It went too far.", _half(rate), "diverged")
    if turned is not None:
        return Advice("Fewer steps", "Later ones made the validation worse.", f"dpo.max_num_steps={turned.best_step}", "length")
    if run.measured.validation is None or is_no_test(run):
        hold = "data.validation.prompt_file=HELD_OUT.jsonl"
        return Advice("Hold pairs out", "Without them nothing says when to stop.", hold, "length")
    if "learned length" in said:
        return Advice(
            "Weigh against length", "Or use pairs whose chosen response is not the longer.", "dpo.length_alpha=0.01", "data"
        )
    if beta:
        return Advice(
            "A greater beta, and compare", "It may do as well nearer to the reference.", _beta(2 * beta), "diverged", False
        )
    return Advice("A lower learning rate, and compare", "It may do as well with less drift.", _half(rate))


def _too_early(run: Run) -> str:
    """How far it came, which is not far enough."""
    step, planned, state = run.measured.last_step, run.steps_planned, run.given.state
    of = f" of {planned}" if planned and planned > step else ""
    ended = f"it was {state} after" if state in ("stopped", "killed") else f"it {state} after" if state == "failed" else "after"
    return f"Too early to tell: {ended} step {step}{of}"


def _higher_rate(run: Run) -> Advice | None:
    """What to do where nothing was learned: a rate that was never reached is not yet too low."""
    made, rate = run.measured.made, run.given.setting("policy.optimizer.lr")
    warmup_steps = run.given.setting("policy.scheduler.warmup_steps")
    warm_up = made.shorter_warm_up(warmup_steps) if isinstance(warmup_steps, int) else None
    if warm_up is not None:
        steps = counted(made.num_steps, "step", ",")
        why = f"All of {steps} were warm-up, of {warmup_steps}. More steps or epochs may do as well."
        return Advice("A shorter warm-up", why, f"policy.scheduler.warmup_steps={warm_up}")
    if not isinstance(rate, int | float):
        return None
    return Advice("Ten times the learning rate", "At this one nothing was learned.", f"policy.optimizer.lr={10 * rate:g}")


def _beta(value: float) -> str:
    return f"dpo.reference_policy_kl_penalty={value:g}"


def _half(rate: object) -> str:
    return f"policy.optimizer.lr={rate / 2:g}" if isinstance(rate, int | float) else ""


def _typed(run: Run, setting: str) -> tuple[str, ...]:
    """The run's own command with the setting in it, where nemotron-steps was called; else the setting."""
    argv = run.given.record.get("argv")
    if not setting or not isinstance(argv, list) or not argv:
        return (setting,) if setting else ()
    key = setting.partition("=")[0]
    return (visible(typed([*(str(word) for word in argv if not str(word).startswith(f"{key}=")), setting])),)


def _strategy(about: str) -> tuple[str, str] | None:
    """What the manifest of the step says of it, in its own words: when, and then."""
    if about not in _ABOUT:
        return None
    step = manifest.find_step(_STEP, manifest.discover(manifest.configs_root()))
    pattern = re.compile(_ABOUT[about], re.IGNORECASE)
    found = next((one for one in step.strategies if pattern.search(str(one.get("when", "")))), None)
    return (str(found["when"]).rstrip("."), str(found["then"]).rstrip(".")) if found else None


def _quoted(strategy: tuple[str, str], *, is_case: bool) -> str:
    when, then = strategy
    start = "The manifest of the step says" if is_case else "The manifest of the step has for worse cases"
    return f'{start}: "{when}: {then}."'
