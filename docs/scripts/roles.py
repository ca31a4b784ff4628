"""An extension of Griffe: what our docstrings hold, as Markdown.

Sphinx's roles, as in ``:class:`Learner```, become links where the site has the thing; examples become code blocks.
"""

from __future__ import annotations

import html
import re
from typing import Any

import griffe

ROLE = re.compile(r":[a-z]+:`(~?)([\w.]+)`")
EXAMPLE = re.compile(r"^( *)>>> .*(?:\n.*\S.*)*", re.MULTILINE)
"""From a prompt to the next empty line."""


class Docstrings(griffe.Extension):
    """Rewrites every docstring once it is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """A module, class, function or attribute."""
        if obj.docstring is not None:
            text = ROLE.sub(lambda match: _link(obj, *match.groups()), obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(r"\1```pycon\n\g<0>\n\1```", text)


def _link(obj: griffe.Object, short: str, name: str) -> str:
    """An optional reference: text alone, where the site does not show the thing."""
    first, _, rest = name.partition(".")
    try:
        full = obj.resolve(first) + (f".{rest}" if rest else "")
    except griffe.NameResolutionError:
        full = name
    shown = html.escape(name.rpartition(".")[2] if short else name)
    return f'<autoref optional identifier="{full}"><code>{shown}</code></autoref>'
