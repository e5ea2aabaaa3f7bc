"""What the sections of a page are made of."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], style: str = "numbers") -> str:
    """An HTML table; cells are markup already. `style`: "numbers", "notes" (the last column is words), or "words"."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class='scroll'><table class='{style}'><tr>{head}</tr>{body}</table></div>"


def bar(share: float, text: str) -> str:
    """A bar as long as `share`, 0 to 1, behind a text."""
    return f"<span class='bar'><i style='width:{100 * min(max(share, 0.0), 1.0):.1f}%'></i>{text}</span>"


def listed(items: Sequence[str]) -> str:
    """A list with dots; items are markup already. Empty for none."""
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""


def cards(numbers: Sequence[tuple[str, str, str]]) -> str:
    """Numbers writ large: each the number, what it is, and a remark. All of it is markup already."""
    made = "".join(f"<li><b>{value}</b>{what}<span>{aside}</span></li>" for value, what, aside in numbers)
    return f"<ul class='figures'>{made}</ul>" if made else ""
