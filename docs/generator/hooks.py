"""What the site has beyond the pages in `docs/`: generated pages, source code and equations.

MkDocs calls the functions by their names.
"""

from __future__ import annotations

import html
import re
import textwrap
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import notebooks
import pages
import settings

FROM_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files beside `docs/` that are pages, and their names there."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Read the sources anew; list generated pages where `mkdocs.yml` names their folder."""
    for cached in (settings.read, settings.describe, settings.package):
        cached.cache_clear()
    tutorials = ["tutorials/index.md", *(f"tutorials/{path.stem}.md" for path in notebooks.paths())]
    modules: dict[str, list[Any]] = {}
    for name in pages.modules():
        modules.setdefault(name.rpartition(".")[0], []).append({name.rpartition(".")[2]: f"api/{name}.md"})
    below = [{name: entries} for name, entries in sorted(modules.items())]
    folders = {"tutorials/": tutorials, "api/": ["api/index.md", *below]}
    config.nav = _fill(config.nav, folders)
    return config


def _fill(nav: Any, folders: dict[str, list[Any]]) -> Any:
    if isinstance(nav, list):
        return [_fill(entry, folders) for entry in nav]
    if isinstance(nav, dict):
        return {title: _fill(entry, folders) for title, entry in nav.items()}
    return folders.get(nav, nav)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Write the pages that have no file in `docs/`."""
    texts = {
        new: _move(settings.ROOT.joinpath(old).read_text(encoding="utf-8")) for old, new in FROM_ROOT.items()
    }
    texts |= {
        "programs.md": pages.programs(),
        "settings.md": pages.groups(),
        "experiments.md": pages.experiments(),
    }
    texts |= {"api/index.md": pages.module_index()}
    texts |= {f"api/{name}.md": f"# {name}\n\n::: {name}\n" for name in pages.modules()}
    texts |= {"tutorials/index.md": notebooks.index()}
    for path in notebooks.paths():
        texts[f"tutorials/{path.stem}.md"] = notebooks.page(path, config.extra["repository"])
        files.append(File.generated(config, f"tutorials/{path.name}", abs_src_path=str(path)))
    for name, text in texts.items():
        files.append(File.generated(config, name, content=text))
    return files


def _move(text: str) -> str:
    """Links of a page that lies beside `docs/`, as seen from within."""
    text = text.replace("](docs/", "](")
    for old, new in FROM_ROOT.items():
        text = text.replace(f"]({old})", f"]({new})")
    return text


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the source of what a `source` block names into it, without docstrings."""
    return re.sub(
        r"^```source\n(.+?)\n```$", lambda match: _sources(match[1].split()), markdown, flags=re.M | re.S
    )


def _sources(names: list[str]) -> str:
    owners = ", ".join(f"[`{name}`][{name.partition('._')[0]}]" for name in names)
    code = "\n\n\n".join(source(name) for name in names)
    return f"Code of {owners}:\n\n```python\n{code}\n```"


def source(name: str) -> str:
    """The code of a function, method or class without its docstring.

    Args:
        name: Dotted, of something in the package.
    """
    found = settings.package()[name.removeprefix("wsss_afa.")]
    lines = found.source.splitlines()
    if found.docstring:
        first, last = (
            number - found.lineno for number in (found.docstring.lineno, found.docstring.endlineno)
        )
        del lines[first : last + 1]
    return textwrap.dedent("\n".join(lines)).strip()


def on_page_content(content: str, **_: Any) -> str:
    """Turn equations into MathML, which browsers draw without a script."""
    inline = r'<span class="arithmatex">\\\((.+?)\\\)</span>'
    block = r'<div class="arithmatex">\\\[(.+?)\\\]</div>'
    content = re.sub(inline, lambda match: to_mathml(html.unescape(match[1]), "inline"), content)
    return re.sub(block, lambda match: to_mathml(html.unescape(match[1]), "block"), content, flags=re.DOTALL)


def to_mathml(equation: str, display: str) -> str:
    """MathML of an equation in TeX, ``inline`` or in a ``block`` of its own."""
    return convert(equation.strip(), display=display)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse a page that loads something from elsewhere: it would be broken without a network.

    Raises:
        PluginError: it does.
    """
    loaded = re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="?(https?:[^" >]+)', output)
    styles = re.findall(r'<link[^>]*\brel="?stylesheet[^>]*\bhref="?(https?:[^" >]+)', output)
    if loaded or styles:
        raise PluginError(f"{page.file.src_uri} loads {', '.join(loaded + styles)}: put it into docs/assets")
    return output
