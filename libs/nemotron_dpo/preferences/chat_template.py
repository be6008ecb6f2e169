"""Chat templates as transformers runs them: the same sandbox, filters and globals, so the same text comes out.

The reference is transformers/utils/chat_template_utils.py. A template is code of a stranger: it runs in Jinja's immutable
sandbox and sees plain JSON values alone.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any, NoReturn

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.problems import RowProblem

Render = Callable[..., str]


def compile_template(source: str, name: str, special_tokens: dict[str, str], now: datetime.datetime) -> Render:
    """A function (messages, add_generation_prompt, tools, **kwargs) -> text that runs the template `source`.

    `name` stands in error messages; `now` is what strftime_now shows, fixed so that a run does not depend on its hour.
    Raises UserError where the template does not compile; the function raises RowProblem where it fails on a row.
    """
    import jinja2

    try:
        template = _environment(now).from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template does not compile: {error.message}", source=name, line=error.lineno) from None

    constants = {**template.globals, "documents": None, **special_tokens}

    def render(
        messages: list[dict[str, Any]], add_generation_prompt: bool, tools: list[Any] | None = None, **kwargs: Any
    ) -> str:
        row = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:  # template.render() would copy the globals for every row
            return "".join(template.root_render_func(template.new_context({**constants, **kwargs, **row}, shared=True)))
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, LookupError, ArithmeticError) as error:
            what = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RowProblem("template error", f"the chat template refuses the row: {what}") from None
        except RecursionError:
            raise RowProblem("template error", "the chat template refuses the row: nested too deeply") from None

    return render


def _environment(now: datetime.datetime) -> Any:
    import jinja2.ext

    environment = _sandbox()(trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = now.strftime
    return environment


def _sandbox() -> Any:
    """Jinja's immutable sandbox; its verdict on an attribute, which depends on the object's type alone, is remembered."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class RememberingSandbox(ImmutableSandboxedEnvironment):
        verdicts: dict[tuple[type, str], bool]

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if isinstance(obj, type):
                return super().is_safe_attribute(obj, attr, value)
            known = self.verdicts.get((type(obj), attr))
            if known is None:
                known = self.verdicts[type(obj), attr] = super().is_safe_attribute(obj, attr, value)
            return known

    RememberingSandbox.verdicts = {}
    return RememberingSandbox


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
