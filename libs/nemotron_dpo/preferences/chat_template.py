"""Runs chat templates as transformers does: with the same sandbox, filters and globals, so that the text is the same.

The reference is transformers/utils/chat_template_utils.py. A template is a stranger's code, so it runs in Jinja's immutable
sandbox and sees only plain JSON values.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable
from typing import Any, NoReturn

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences import template_limits
from nemotron_dpo.preferences.problems import RowProblem

Render = Callable[..., str]


def compile_template(source: str, name: str, special_tokens: dict[str, str], now: datetime.datetime) -> Render:
    """A function (messages, add_generation_prompt, tools, **kwargs) -> text that runs the template `source`.

    Error messages name the template as `name`. `now` is the time that strftime_now shows; the caller fixes it, so that the
    text does not depend on the hour of the run. Raises UserError where the template does not compile. The returned function
    raises RowProblem where the template fails on a row.
    """
    import jinja2

    try:
        template = _compiled(source, now)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template does not compile: {error.message}", source=name, line=error.lineno) from None
    except RowProblem as problem:
        raise UserError(problem.message, source=name) from None
    except (RecursionError, SyntaxError, MemoryError, OverflowError, ValueError) as error:  # of Python, which Jinja compiles to
        what = "it is nested too deeply" if isinstance(error, RecursionError | MemoryError) else str(error).splitlines()[0]
        raise UserError(f"the chat template does not compile: {what}", source=name) from None

    constants = {**template.globals, "documents": None, **special_tokens}

    def render(
        messages: list[dict[str, Any]], add_generation_prompt: bool, tools: list[Any] | None = None, **kwargs: Any
    ) -> str:
        row = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:  # template.render() would copy the globals for every row
            context = template.new_context({**constants, **kwargs, **row}, shared=True)
            return template_limits.joined(template.root_render_func(context))
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, LookupError, ArithmeticError) as error:
            what = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RowProblem("template error", f"the chat template refuses the row: {what}") from None
        except RecursionError:
            raise RowProblem("template error", "the chat template refuses the row: nested too deeply") from None

    return render


@functools.lru_cache(maxsize=8)
def _compiled(source: str, now: datetime.datetime) -> Any:
    with template_limits.watched("compiles"):
        return _environment(now).from_string(source)


def _environment(now: datetime.datetime) -> Any:
    import jinja2.ext

    environment = _sandbox()(trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), jinja2.ext.loopcontrols])
    for name in ("center", "indent", "replace", "format"):
        environment.filters[name] = _limited(name, environment.filters[name])
    environment.globals.pop("lipsum", None)  # as many words as one asks for
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = now.strftime
    return environment


def _sandbox() -> Any:
    """Jinja's immutable sandbox, which here remembers whether an attribute is safe.

    That depends on the object's type alone, unless the object is itself a class. Remembering it saves time on every row.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class RememberingSandbox(ImmutableSandboxedEnvironment):
        verdicts: dict[tuple[type, str], bool]
        intercepted_binops = frozenset(("*", "**", "%", "+"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            template_limits.check_operation(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override] - jinja2 mangles these names
            if isinstance(text := getattr(called, "__self__", None), str):
                template_limits.check_call(called.__name__, text, (*args, *kwargs.values()))
            return super().call(context, called, *args, **kwargs)

        def wrap_str_format(self, value: Any) -> Any:
            wrapped = super().wrap_str_format(value)
            return None if wrapped is None else _limited_format(value.__self__, wrapped)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if isinstance(obj, type):
                return super().is_safe_attribute(obj, attr, value)
            known = self.verdicts.get((type(obj), attr))
            if known is None:
                known = self.verdicts[type(obj), attr] = super().is_safe_attribute(obj, attr, value)
            return known

    RememberingSandbox.verdicts = {}
    return RememberingSandbox


def _limited_format(text: str, own: Callable[..., str]) -> Callable[..., str]:
    """Jinja's way to fill the places of `text`, for texts that have an end."""

    def limited(*args: Any, **kwargs: Any) -> str:
        template_limits.check_call("format", text, ())
        return own(*args, **kwargs)

    return limited


def _limited(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
    """Jinja's filter `name`, for texts that have an end."""

    @functools.wraps(own)  # it keeps the mark of filters that get the context, too
    def limited(*args: Any, **kwargs: Any) -> Any:
        text = next((value for value in args if isinstance(value, str)), None)
        rest = args[args.index(text) + 1 :] if text is not None else ()
        template_limits.check_call(name, text, (*rest, *kwargs.values()))
        return own(*args, **kwargs)

    return limited


def _generation_tag() -> Any:
    """{% generation %}...{% endgeneration %} marks an assistant's tokens for transformers; here its body is just text."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class GenerationTag(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain class attribute

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    return GenerationTag


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)
