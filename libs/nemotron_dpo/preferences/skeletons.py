"""Run a chat template once for all conversations with the same roles, to save the cost of running it for each row.

Many templates (ChatML, Zephyr, SmolLM2's) only look at the roles of messages and print their contents. This module proves that
on the template's syntax tree, which may contain only constructs from a list of harmless ones. One rendering with marks in place
of the contents, the skeleton, then serves all conversations with the same roles. A template that looks at a content, or that
does anything that is not on the list, is run for each row.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from nemotron_dpo.preferences.chat_template import Render

_MAX_SKELETONS = 1024
_TEXTS = {str}
_LOOP_FACTS = ("first", "last", "index", "index0", "revindex", "revindex0", "length")
_HARMLESS = (
    "Template", "Output", "TemplateData", "For", "If", "Name", "Const", "Getattr", "Getitem", "Add", "Concat", "Mod",
    "Compare", "Operand", "And", "Or", "Not", "Call",
)  # fmt: skip
_MARK = re.compile("\0([0-9]+)\0")


def remember(render: Render, source: str) -> Render:
    """A faster form of `render`, which runs the template `source`; `render` itself where the proof above fails.

    The faster form gives the same texts. It fills skeletons that it keeps by the roles of the messages.
    """
    if not only_prints_contents(source):
        return render
    skeletons: dict[tuple[Any, ...], list[Any]] = {}

    def fill(messages: list[dict[str, Any]], add_generation_prompt: bool, tools: Any = None, **kwargs: Any) -> str:
        contents = [message.get("content") for message in messages]
        if tools or kwargs or set(map(type, contents)) != _TEXTS:
            return render(messages, add_generation_prompt, tools, **kwargs)
        roles = (add_generation_prompt, *[message["role"] for message in messages])
        skeleton = skeletons.get(roles)
        if skeleton is None:
            marked = [{"role": role, "content": f"\0{i}\0"} for i, role in enumerate(roles[1:])]
            parts: list[Any] = _MARK.split(render(marked, add_generation_prompt))
            parts[1::2] = map(int, parts[1::2])
            if len(skeletons) < _MAX_SKELETONS:
                skeletons[roles] = parts
            skeleton = parts
        filled: list[Any] = skeleton.copy()
        filled[1::2] = [contents[i] for i in skeleton[1::2]]
        return "".join(filled)

    return fill


@functools.lru_cache(maxsize=8)
def only_prints_contents(source: str) -> bool:
    """True where `source`, a valid template, provably reads only roles of messages and prints their contents unchanged."""
    import jinja2.ext
    from jinja2 import nodes

    try:  # jinja2 does not know the tag {% generation %}: a template that has it is run for each row
        tree = jinja2.Environment(extensions=[jinja2.ext.loopcontrols]).parse(source)
    except jinja2.TemplateSyntaxError:
        return False
    if "\0" in source:
        return False
    parents = {child: node for node in tree.find_all(nodes.Node) for child in node.iter_child_nodes()}
    names = {loop.target.name for loop in tree.find_all(nodes.For) if isinstance(loop.target, nodes.Name)}
    return all(_is_harmless(node, parents, names) for node in tree.find_all(nodes.Node))


def _is_harmless(node: Any, parents: dict[Any, Any], loop_names: set[str]) -> bool:
    kind = type(node).__name__
    if kind not in _HARMLESS:
        return False
    if kind == "For":
        plain = type(node.target).__name__ == type(node.iter).__name__ == "Name"
        return plain and node.iter.name == "messages" and not (node.test or node.else_ or node.recursive)
    if kind == "Call":
        return type(node.node).__name__ == "Name" and node.node.name == "raise_exception"
    if kind == "Name" and node.ctx == "load":
        return _is_harmless_name(node, parents, loop_names)
    return True


def _is_harmless_name(node: Any, parents: dict[Any, Any], loop_names: set[str]) -> bool:
    """True where the template uses the variable `node` in a harmless way.

    It may loop over `messages` or read the role of the first one. Of the message in a loop, it may read the role or print the
    content. Of `loop`, it may read the position. Other variables depend on no content.
    """
    parent = parents[node]
    if node.name == "loop":
        return type(parent).__name__ == "Getattr" and parent.attr in _LOOP_FACTS
    if node.name == "messages":
        if type(parent).__name__ == "For":
            return parent.iter is node
        return _key(parent, node) == 0 and _key(parents[parent], parent) == "role"
    if node.name in loop_names:
        key = _key(parent, node)
        return key == "role" or (key == "content" and _is_printed(parent, parents))
    return True


def _key(access: Any, node: Any) -> Any:
    """The constant name or index with which the expression `access` reads a part of `node`; None for any other expression."""
    kind = type(access).__name__
    if kind == "Getattr" and access.node is node:
        return access.attr
    if kind == "Getitem" and access.node is node:
        return access.arg.value if type(access.arg).__name__ == "Const" else None
    return None


def _is_printed(node: Any, parents: dict[Any, Any]) -> bool:
    parent = parents[node]
    while type(parent).__name__ in ("Add", "Concat"):
        parent = parents[parent]
    return type(parent).__name__ == "Output"
