"""Help that a person can read: examples first, then the options in groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import click

#: The order of the groups; options without a group are last.
GROUPS = ("What to watch", "What to upload", "Evaluation", "GPUs and cluster", "W&B", "Files")


class GroupedOption(click.Option):
    """An option that belongs to one of `GROUPS`."""

    def __init__(self, *args: Any, group: Optional[str] = None, **keywords: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **keywords)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help has examples and groups.

    Args:
        args: As click takes them.
        examples: What to type after ``eval-sidecar``, and what it does.
        keywords: As click takes them.
    """

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **keywords: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **keywords)
        self._examples = examples

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the command does, then how it is used."""
        super().format_help_text(ctx, formatter)
        if self._examples:
            with formatter.section("Examples"):
                for command, does in self._examples:
                    formatter.write(f"{'':{formatter.current_indent}}{ctx.find_root().info_name} {command}\n")
                    formatter.write(f"{'':{formatter.current_indent + 4}}{does}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section a group."""
        sections: dict[Optional[str], list[tuple[str, str]]] = {group: [] for group in (*GROUPS, None)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections[getattr(parameter, "group", None)].append(record)
        for group, records in sections.items():
            if records:
                with formatter.section(group or "Options"):
                    formatter.write_dl(records)
